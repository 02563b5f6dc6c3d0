# Sourced by scripts that fetch Debian packages of any release without touching the system's lists:
# a private apt configuration below $work, made from the machine's own package sources with the
# release's name changed. apt checks signatures and hashes as always. The caller sets $work and `fail`.

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")

# The machine's first package source of its own release, as a deb822 paragraph of type $1, release $2.
source_of() {
    local file
    for file in /etc/apt/sources.list.d/*.sources; do
        [[ -e $file ]] || continue
        awk -v RS= -v type="$1" -v ours="$codename" -v theirs="$2" '
            $0 !~ "(^|\n)Suites:[^\n]* ?" ours "( |\n|$)" || tolower($0) ~ /(^|\n)enabled: *no/ {next}
            {
                sub(/(^|\n)Types:[^\n]*/, "\nTypes: " type)
                sub(/\nSuites:[^\n]*/, "\nSuites: " theirs)
                sub(/\nComponents:[^\n]*/, "\nComponents: main")
                print; print ""; found = 1; exit
            }
            END {exit !found}' "$file" && return
    done
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [[ -e $file ]] || continue
        awk -v type="$1" -v ours="$codename" -v theirs="$2" '
            $1 != "deb" {next}
            {options = ""; at = 2}
            $2 ~ /^\[/ {while ($at !~ /\]$/) options = options " " $(at++); options = options " " $(at++)}
            $(at + 1) != ours {next}
            {
                print "Types: " type "\nURIs: " $at "\nSuites: " theirs "\nComponents: main"
                if (match(options, /signed-by=[^] ]*/)) print "Signed-By: " substr(options, RSTART + 10, RLENGTH - 10)
                print ""; found = 1; exit
            }
            END {exit !found}' "$file" && return
    done
    return 1
}

# configure_apt TYPE RELEASE…: with those kinds of packages (deb, deb-src) of those releases, in pairs.
configure_apt() {
    mkdir -p "$work"/apt/lists/partial "$work"/apt/archives/partial
    while (($#)); do
        source_of "$1" "$2" || fail "found no package source of $codename in /etc/apt"
        shift 2
    done >"$work/apt/private.sources"
    cat >"$work/apt/apt.conf" <<-END
	Dir::Etc::SourceList "$work/apt/private.sources";
	Dir::Etc::SourceParts "/dev/null";
	Dir::State::Lists "$work/apt/lists";
	Dir::State::Status "/dev/null";
	Dir::Cache "$work/apt";
	Dir::Cache::pkgcache "pkgcache.bin";
	Dir::Cache::srcpkgcache "srcpkgcache.bin";
	APT::Sandbox::User "root";
	Acquire::Languages "none";
	Acquire::Retries "3";
	END
}

# Runs apt-get with the private configuration and shows what it said only if it failed.
private_apt() {
    apt-get --config-file "$work/apt/apt.conf" -q "$@" >"$work/apt.log" 2>&1 ||
        { cat "$work/apt.log" >&2; return 1; }
}
