#!/bin/sh
# Writes requirements.lock anew from pyproject.toml: every package with its hashes, and no address of
# an index. A kept package stays at its version; UPGRADE=1 takes the newest.
set -eu
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
[ -x "$uv" ] || { echo "lock.sh: run 'scripts/setup.sh venv' first: it brings uv" >&2; exit 1; }
"$uv" pip compile --quiet pyproject.toml --extra embedded --extra gpu --extra kubernetes --group dev \
    ${UPGRADE:+--upgrade} --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o requirements.lock
