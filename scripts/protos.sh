#!/bin/sh
# Generate node_worker/containerd/proto/*_pb2.py(i) from the .proto files beside them.
set -eu
cd "$(dirname "$0")/.."
out=node_worker/containerd/proto
PATH="$PWD/.venv/bin:$PATH" .venv/bin/python -m grpc_tools.protoc -I. \
    --python_out=. --mypy_out=quiet:. "$out"/*.proto
# The generated code works with protobuf 6 and 7; its version check knows only the one it was
# generated with, and would turn the other away.
for file in "$out"/*_pb2.py; do
    sed -i -e '/^_runtime_version.ValidateProtobufRuntimeVersion(/,/^)/d' -e '/runtime_version/d' "$file"
done
