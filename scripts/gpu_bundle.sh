#!/bin/bash
# Packs what a GPU machine without package sources needs to run this checkout into .gpu/:
#
#   stack.tar.xz   containerd 2, runc, CRIU, busybox (from scripts/stack.sh), make, their libraries
#   wheels/        the locked Python packages for CPython 3.12, the tests' own and Kybernate among them
#
# scripts/gpu_machine.sh unpacks it there. A bundle that is current is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=.gpu
most_bytes=$((60 * 1000 * 1000))
stack=${KYBERNATE_STACK:-${XDG_CACHE_HOME:-$HOME/.cache}/kybernate/stack}
# Pure Python that is published without a wheel.
source_packages=(nkeys)
test_packages=(pytest pytest-asyncio pytest-timeout hypothesis nvidia-ml-py)
glibc_minors=(17 24 26 27 28 31 34 35)

say() { printf 'gpu bundle: %s\n' "$*"; }
fail() { printf 'gpu bundle: %s\n' "$*" >&2; exit 1; }

wanted() { { cat requirements.lock pyproject.toml scripts/stack.sh deploy/criu/*.patch scripts/gpu_bundle.sh; } | sha256sum; }

# What the programs are linked with beyond the C library; CRIU brings its own.
libraries_of() {
    ldd "$@" | awk '$3 ~ /^\// {print $3}' | grep -vE '/(libc|libm|libdl|libpthread)\.so|/criu/' | sort -u
}

pack_stack() {
    local work=$1 name library
    for name in containerd-2 runc criu busybox; do
        cp -r "$stack/$name" "$work/"
    done
    mkdir -p "$work/tools/bin" "$work/tools/lib"
    cp "$(command -v make)" "$work/tools/bin/"
    libraries_of "$work"/{runc,containerd-2,tools}/bin/* | while read -r library; do
        cp -L "$library" "$work/tools/lib/"
    done
    cp "$stack/.recipe" "$work/"
    tar -C "$work" -cf - . | xz -T0 -6 >"$bundle/stack.tar.xz"
}

# The dependencies that pyproject.toml names for running, as pip takes them.
dependencies() {
    .venv/bin/python - <<-'END'
	import pathlib, tomllib
	project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
	print(*project["dependencies"], *project["optional-dependencies"]["embedded"], sep="\n")
	END
}

fetch_wheels() {
    local constraints=$1 minor platforms=()
    grep -E '^[a-z0-9]' requirements.lock | sed 's/ *\\$//' >"$constraints"
    for minor in "${glibc_minors[@]}"; do
        platforms+=(--platform "manylinux_2_${minor}_x86_64")
    done
    .venv/bin/python -m pip wheel --quiet --no-deps --constraint "$constraints" \
        --wheel-dir "$bundle/wheels" "${source_packages[@]}"
    dependencies | .venv/bin/python -m pip download --quiet --only-binary=:all: \
        --find-links "$bundle/wheels" \
        --python-version 3.12 --implementation cp "${platforms[@]}" \
        --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
        --constraint "$constraints" --dest "$bundle/wheels" \
        --requirement /dev/stdin "${test_packages[@]}"
}

# The checkout stands before it on the path; this is for its version and its commands.
build_wheel() {
    .venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$bundle/wheels" .
}

[[ -f $bundle/.recipe && $(<"$bundle/.recipe") == "$(wanted)" ]] && exit 0
[[ $(uname -m) == x86_64 ]] || fail "the programs that are packed must be for x86-64"
scripts/setup.sh
say "packing programs and Python packages"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf "$bundle"
mkdir -p "$bundle/wheels" "$work/stack"
pack_stack "$work/stack"
fetch_wheels "$work/constraints.txt"
build_wheel
bytes=$(du -sb "$bundle" | cut -f 1)
((bytes < most_bytes)) || fail "$bundle has $bytes bytes, more than $most_bytes: leave something out"
wanted >"$bundle/.recipe"
say "$bundle is ready: $((bytes / 1000000)) MB"
