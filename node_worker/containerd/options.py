"""Runtime options of a container that runc runs, as its record in containerd holds them."""

from pathlib import Path

from node_worker.containerd import convert
from node_worker.containerd.port import Packed
from node_worker.containerd.proto import runc_pb2


def runc_options(*, root: Path, binary_name: str = "", systemd_cgroup: bool = False) -> Packed:
    """`root` is where runc keeps its state; two containerds must not share one."""
    options = runc_pb2.Options(
        root=str(root), binary_name=binary_name, systemd_cgroup=systemd_cgroup
    )
    return convert.packed(convert.typed(options))
