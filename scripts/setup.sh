#!/bin/bash
# Makes this checkout ready to work: .venv from requirements.lock (every package checked by its hash)
# and the runtime stack that scripts/stack.sh describes.
#
#   scripts/setup.sh          all of it
#   scripts/setup.sh venv     only .venv: enough for 'make check'
#
# Safe to run at any time and by several at once: what is done already is left alone, in a moment.
# On Debian as root it installs the packages it misses; elsewhere it names them.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:-all}
stamp=.venv/.kybernate-setup

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

wanted() { { pwd; cat requirements.lock pyproject.toml scripts/setup.sh; } | sha256sum; }
venv_ready() { [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$(wanted)" ]]; }

# The first Python that is new enough and able to make an environment.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13 /usr/bin/python3; do
        "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null && { command -v "$candidate"; return; }
    done
    return 1
}

install_python() {
    [[ $(id -u) == 0 && -n $(command -v apt-get) ]] ||
        fail "needs Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv)"
    say "installing python3-venv"
    scripts/apt-install.sh python3-venv
}

# The lines of one package in requirements.lock: name==version and its hashes.
locked() { awk -v name="$1==" 'index($0, name) == 1 {on = 1} on {print} on && !/\\$/ {exit}' requirements.lock; }

make_venv() {
    local python
    find_python >/dev/null || install_python
    python=$(find_python) || fail "found no Python 3.11 or newer, even after installing python3-venv"
    say "making .venv with $("$python" -V)"
    rm -f "$stamp"
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
    [[ -x .venv/bin/uv ]] ||
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r <(locked uv)
    install_packages
    wanted >"$stamp"
}

# uv is quick; pip knows index settings that uv does not read, so it is the second try.
install_packages() {
    if .venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock; then
        .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
        return
    fi
    say "uv could not install the packages; trying pip"
    .venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock
    .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
}

locked_make_venv() {
    exec 9>.setup.lock
    flock 9
    venv_ready || make_venv
    exec 9>&-
}

case $part in
all | venv) ;;
*) fail "usage: scripts/setup.sh [venv]" ;;
esac
if [[ $part == venv ]]; then
    venv_ready || locked_make_venv
    exit
fi
[[ -n $(command -v openssl) ]] || scripts/apt-install.sh openssl  # tests make certificates with it
scripts/stack.sh & stack=$!
venv_ready || locked_make_venv
wait "$stack" || fail "the runtime stack is not ready (see above); 'make check' works without it"
