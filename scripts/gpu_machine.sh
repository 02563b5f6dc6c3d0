#!/bin/bash
# Runs a command on a GPU machine without package sources, from the bundle of scripts/gpu_bundle.sh:
#
#   scripts/gpu_machine.sh make gpu-test
#
# Unpacks .gpu/ once per machine into ${XDG_CACHE_HOME:-$HOME/.cache}/kybernate/gpu and leaves the
# machine's own Python packages (torch, jax, cupy) in place behind the bundle's. PYTHON, default
# python3, must be CPython 3.12. WARM_GIB=N first touches so much memory: on a virtual machine whose
# memory grows with use, the first touch is slow and MemAvailable tells too little.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
home=${XDG_CACHE_HOME:-$HOME/.cache}/kybernate/gpu

fail() { printf 'gpu machine: %s\n' "$*" >&2; exit 1; }

unpack() {
    rm -rf "$home"
    mkdir -p "$home/stack"
    "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="tar")' \
        .gpu/stack.tar.xz "$home/stack"
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --root-user-action ignore --target "$home/site" .gpu/wheels/*.whl
    add_missing_libraries
    cp .gpu/.recipe "$home/.recipe"
}

# runc starts itself anew without its environment, so its libraries must be where all look.
add_missing_libraries() {
    local library found=
    for library in "$home"/stack/tools/lib/*; do
        [[ -e $library ]] || continue
        ldconfig -p | grep -q "[[:space:]]${library##*/} " && continue
        cp "$library" /usr/local/lib/
        found=yes
    done
    [[ -z $found ]] || ldconfig
}

warm() {
    "$python" -c 'import sys, torch; torch.ones(int(sys.argv[1]) << 28)' "$WARM_GIB"
}

[[ $# -gt 0 ]] || fail "usage: scripts/gpu_machine.sh COMMAND…"
[[ -f .gpu/.recipe ]] || fail "there is no .gpu/: make it with scripts/gpu_bundle.sh where packages can be had"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' ||
    fail "$python is not CPython 3.12, for which the bundle's packages are"
cmp -s .gpu/.recipe "$home/.recipe" || unpack
[[ -z ${WARM_GIB:-} ]] || warm

export PYTHON=$python
export KYBERNATE_STACK=$home/stack
export PYTHONPATH=$PWD:$home/site${PYTHONPATH:+:$PYTHONPATH}
# Of pytest's plugins only the bundle's: the machine's own ones are not what the tests were written for.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTEST_PLUGINS=pytest_asyncio.plugin,pytest_timeout,_hypothesis_pytestplugin
export PATH=$home/site/bin:$PATH:$home/stack/tools/bin
exec "$@"
