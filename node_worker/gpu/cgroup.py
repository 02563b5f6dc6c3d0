"""How much memory a process's control groups still grant it: GPU memory that moves to the host
is charged to the container, and one byte too many gets it killed.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from node_worker.gpu.host import PROC, read

ROOT = Path("/sys/fs/cgroup")
_INACTIVE = re.compile(r"^(?:total_)?inactive_file (\d+)$", re.MULTILINE)
UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number above every real one."""


def rooms(pid: int, proc: Path = PROC, root: Path = ROOT) -> dict[Path, int]:
    """What each group with a limit, from the process upwards, has left."""
    found = ((group, _room(group)) for group in _groups(pid, proc, root))
    return {group: room for group, room in found if room is not None}


def _groups(pid: int, proc: Path, root: Path) -> Iterator[Path]:
    """The folders of its memory controller, from its own group up to the root."""
    for line in read(proc / str(pid) / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        own = base / path.lstrip("/")
        yield own
        yield from (parent for parent in own.parents if parent.is_relative_to(base))


def _room(group: Path) -> int | None:
    limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
    used = _number(group / "memory.current", group / "memory.usage_in_bytes")
    if limit is None or used is None or limit >= UNLIMITED:
        return None
    cache = re.search(
        r"^(?:total_)?inactive_file (\d+)$", read(group / "memory.stat"), re.MULTILINE
    )
    return max(0, limit - used + (int(cache[1]) if cache else 0))


def _number(*names: Path) -> int | None:
    """The number in the first of the files that exists; None also for `max`."""
    text = next((text for name in names if (text := read(name).strip())), "")
    return int(text) if text.isdigit() else None
