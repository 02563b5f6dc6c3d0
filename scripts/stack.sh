#!/bin/bash
# Puts the runtime stack that Kybernate drives into a folder of its own; nothing of it is installed on
# the system. The folder is $KYBERNATE_STACK, else ${XDG_CACHE_HOME:-$HOME/.cache}/kybernate/stack:
#
#   containerd-1.6/bin/   containerd, containerd-shim-runc-v2, ctr     as in Debian 12
#   containerd-1.7/bin/   the same three                               as in Debian 13
#   containerd-2/bin/     the same three                               as in Debian sid
#   runc/bin/runc                                                      as in Debian 12, for all three
#   criu/bin/criu         built here from Debian sid's source, with deploy/criu/*.patch; libraries in criu/lib/
#   busybox/bin/busybox   static                                       as in Debian 12
#   .recipe               hash of this script and the patches; written last, so a folder that has it is complete
#
# Every program runs where it lies: put the bin/ folders you need first in PATH (containerd finds its
# shim there, the shim finds runc, runc finds criu).
#
# Packages of other Debian releases come through a private apt configuration made from the machine's
# own package sources with the release's name changed; apt checks signatures and hashes as always.
# What CRIU's build misses is installed with apt-get as root, else named.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
stack=${KYBERNATE_STACK:-${XDG_CACHE_HOME:-$HOME/.cache}/kybernate/stack}
patches=("$here"/../deploy/criu/*.patch)
recipe=$(cat "$here/stack.sh" "$here/private-apt.sh" "${patches[@]}" | sha256sum)
build_packages=(
    dpkg-dev gcc libc6-dev libcap-dev libnet1-dev libnftables-dev libnl-3-dev libprotobuf-c-dev
    libprotobuf-dev make patch pkg-config protobuf-c-compiler protobuf-compiler uuid-dev xz-utils
)

say() { printf 'stack: %s\n' "$*"; }
fail() { printf 'stack: %s\n' "$*" >&2; exit 1; }
ready() { [[ -f $stack/.recipe && $(<"$stack/.recipe") == "$recipe" ]]; }

fetch() {
    say "fetching containerd 1.6, 1.7 and 2, runc, busybox and CRIU's source"
    private_apt update
    cd "$work/packages"
    private_apt download containerd/bookworm runc/bookworm busybox-static/bookworm
    private_apt download containerd/trixie
    private_apt download containerd/sid
    private_apt source --tar-only --download-only criu/sid
}

# place COMPONENT PACKAGE-FILE PROGRAM…: copies the programs out of a package into COMPONENT/bin.
place() {
    local component=$1 package=$2 program
    shift 2
    dpkg-deb --extract "$work"/packages/$package "$work/unpacked/$component"
    mkdir -p "$work/stack/$component/bin"
    for program; do
        cp "$work/unpacked/$component/$program" "$work/stack/$component/bin/"
    done
}

place_packages() {
    local daemon=(usr/bin/containerd usr/bin/containerd-shim-runc-v2 usr/bin/ctr)
    place containerd-1.6 'containerd_1.6*.deb' "${daemon[@]}"
    place containerd-1.7 'containerd_1.7*.deb' "${daemon[@]}"
    place containerd-2 'containerd_2*.deb' "${daemon[@]}"
    place runc 'runc_*.deb' usr/sbin/runc
    place busybox 'busybox-static_*.deb' bin/busybox
}

# CRIU from sid's source: Debian 12's fails on new kernels, and sid's binary needs a newer glibc. The
# patches say themselves what they are for.
# The libraries it was built with stand beside it, so that it outlives what apt removes.
build_criu() {
    local library patch
    mkdir -p "$work/criu" "$work/stack/criu/bin" "$work/stack/criu/lib"
    tar -xf "$work"/packages/criu_*.orig.tar.* -C "$work/criu" --strip-components=1
    for patch in "${patches[@]}"; do
        patch --quiet --strip=1 --directory="$work/criu" <"$patch" || fail "$patch does not fit CRIU's source"
    done
    # GMONLDOPT is the one variable that reaches the last link alone.
    # shellcheck disable=SC2016
    make --silent -C "$work/criu" -j"$(nproc)" NO_GNUTLS=1 \
        GMONLDOPT='-Wl,--disable-new-dtags,-rpath,\$$ORIGIN/../lib' criu/criu >"$work/criu.log" 2>&1 ||
        { tail -n 40 "$work/criu.log" >&2; fail "CRIU did not build"; }
    strip -o "$work/stack/criu/bin/criu" "$work/criu/criu/criu"
    ldd "$work/criu/criu/criu" | awk '$3 ~ /^\// {print $3}' | grep -vE '/(libc|libm|libdl|libpthread)\.so' |
        while read -r library; do cp -L "$library" "$work/stack/criu/lib/"; done
}

# Each program says its version: one that cannot run here must not be found out by a test.
prove() {
    local name
    for name in containerd-1.6 containerd-1.7 containerd-2; do
        say "$name: $("$work/stack/$name/bin/containerd" --version)"
    done
    say "runc: $("$work/stack/runc/bin/runc" --version | head -n 1)"
    say "criu: $("$work/stack/criu/bin/criu" --version | head -n 1)"
    "$work/stack/busybox/bin/busybox" true
}

install_stack() {
    local component
    mkdir -p "$stack"
    rm -f "$stack/.recipe"
    for component in "$work"/stack/*; do
        rm -rf "${stack:?}/${component##*/}"
        mv "$component" "$stack/"
    done
    printf '%s\n' "$recipe" >"$work/recipe"
    mv "$work/recipe" "$stack/.recipe"
}

install_build_packages() {
    say "installing what CRIU's build needs"
    "$here/apt-install.sh" "${build_packages[@]}"
}

ready && exit 0
[[ $(uname -s) == Linux && -n $(command -v apt-get) ]] ||
    fail "needs Debian 12 or 13; elsewhere fill $stack as the head of this script says"
mkdir -p "$(dirname "$stack")"
exec 9>"$stack.lock"
flock 9
ready && exit 0

work=$(mktemp -d "$stack.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work"/{packages,unpacked,stack}
. "$here/private-apt.sh"
configure_apt deb bookworm deb trixie deb sid deb-src sid
fetch 9>&- & fetching=$!
install_build_packages 9>&-
wait "$fetching" || fail "could not fetch the packages"
say "unpacking them and building CRIU"
place_packages
build_criu
prove
install_stack
say "ready in $stack"
