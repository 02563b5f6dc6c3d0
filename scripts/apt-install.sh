#!/bin/sh
# Installs the Debian packages named on the command line that are not installed yet. Needs root.
set -eu
missing=
for package in "$@"; do
    state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "apt-install.sh: as root: apt-get install$missing" >&2; exit 1; }

export DEBIAN_FRONTEND=noninteractive
install() {
    # shellcheck disable=SC2086
    apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 $missing
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The lists on the machine may be absent or older than its mirror: fetch them and try once more.
install >"$log" 2>&1 || { apt-get update -q -o Acquire::Retries=3 >"$log" 2>&1 && install >"$log" 2>&1; } || {
    cat "$log" >&2
    echo "apt-install.sh: could not install$missing" >&2
    exit 1
}
