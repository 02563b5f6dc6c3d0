"""Runtime options of a container that runc runs, as its record in containerd holds them."""

from pathlib import Path

from node_worker.containerd import convert
from node_worker.containerd.port import Packed
from node_worker.containerd.proto import runc_pb2

RUNC_OPTIONS = "runc.v1.Options"


def runc_options(*, root: Path, binary_name: str = "", systemd_cgroup: bool = False) -> Packed:
    """`root` is where runc keeps its state; two containerds must not share one."""
    options = runc_pb2.Options(
        root=str(root), binary_name=binary_name, systemd_cgroup=systemd_cgroup
    )
    return convert.packed(convert.typed(options))


def with_root(options: Packed | None, root: Path) -> Packed | None:
    """The same options with another root; those of another runtime than runc stay as they are."""
    if options is None:
        return runc_options(root=root)
    if not options.type_url.endswith(RUNC_OPTIONS):
        return options
    changed = runc_pb2.Options.FromString(options.value)
    changed.root = str(root)
    return convert.packed(convert.typed(changed))
