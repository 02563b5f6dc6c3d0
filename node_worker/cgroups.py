"""Where runc makes a container's cgroup, by its spec's cgroupsPath, and what CRIU is told of it.

With cgroup v1 runc tells CRIU of the new place by itself; with v2, only from 1.2 on. CRIU then
brings the processes back into the cgroup that they had: one of another container or node, where
no limit of theirs holds and nothing of their container finds them.
"""

from pathlib import Path
from typing import Any, Final

CGROUPS: Final = Path("/sys/fs/cgroup")
ROOT_OPTION: Final = "cgroup-root"
_UNIFIED: Final = "cgroup.controllers"
_SYSTEMD_PARTS: Final = 3
_SLICE: Final = ".slice"


def criu_root(spec: dict[str, Any], *, tree: Path = CGROUPS) -> str:
    """CRIU's option for a container of that spec; empty where runc needs no help, or none is had.

    The colon says which hierarchy: the one without a name. A host may have others besides.
    """
    if not (tree / _UNIFIED).is_file():
        return ""
    path = (spec.get("linux") or {}).get("cgroupsPath") or ""
    return f"{ROOT_OPTION} :{place}" if (place := _place(path)) else ""


def _place(path: str) -> str:
    """From the root of the hierarchy on; empty where only runc knows."""
    if path.startswith("/"):
        return path.rstrip("/")
    parts = path.split(":")
    if len(parts) != _SYSTEMD_PARTS:
        return ""
    parent, prefix, name = parts
    unit = name if name.endswith(_SLICE) else f"{prefix}-{name}.scope"
    return f"{_slices(parent or 'system.slice')}/{unit}"


def _slices(name: str) -> str:
    """`/a.slice/a-b.slice` from `a-b.slice`: systemd nests them by their names."""
    if name == f"-{_SLICE}":
        return ""
    words = name.removesuffix(_SLICE).split("-")
    return "".join(f"/{'-'.join(words[:count])}{_SLICE}" for count in range(1, len(words) + 1))
