#!/bin/sh
# The whole cycle by hand, with `kybernate up` running: start, checkpoint, resume, delete.
#
#   examples/one_host/cycle.sh [STATE FOLDER OF `kybernate up`]
set -eu
cd "$(dirname "$0")/../.."
state=${1:-/var/lib/kybernate}
PATH=$PWD/.venv/bin:$PATH
name=counter-$$

log=$(python examples/one_host/start.py --state "$state" "$name")
sleep 1

checkpoint=$(kybernate checkpoint "$name" --namespace kybernate --output json |
    python -c 'import json, sys; print(json.load(sys.stdin)["result"]["checkpoint"]["id"])')
echo "checkpointed at: $(tail -n 1 "$log")"
kybernate get checkpoints

kybernate restore "$checkpoint"
sleep 1
echo "counted on to:   $(tail -n 1 "$log")"

# The checkpoint stays whole: the container can be checkpointed again, beside the first one.
kybernate checkpoint "$name" --namespace kybernate
kybernate delete checkpoint "$checkpoint"
kybernate get actions
