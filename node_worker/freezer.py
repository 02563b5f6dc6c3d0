"""The kernel's own freezer, for the one case that containerd cannot help itself out of.

CRIU thaws a paused container while it dumps, for it holds the processes by itself. Killed in the
middle, it leaves them running, while containerd still calls the task paused; and runc refuses to
resume what is not frozen. Frozen again for a moment, containerd can resume it.
"""

import time
from pathlib import Path
from typing import Final

from node_worker.processes import CGROUPS, PROC

_V1: Final = ("freezer.state", "FROZEN", "THAWED")
_V2: Final = ("cgroup.freeze", "1", "0")
SETTLE_SECONDS: Final = 5.0


class NotFrozen(Exception):
    """The processes do not come to rest; one may hang in the kernel (state D)."""


def is_frozen(pid: int, *, proc: Path = PROC, cgroups: Path = CGROUPS) -> bool:
    file, frozen, _ = _freezer(pid, proc, cgroups)
    return file.read_text().strip() == frozen


def freeze_if_thawed(pid: int, *, proc: Path = PROC, cgroups: Path = CGROUPS) -> bool:
    """Freeze the process's cgroup and wait until it is; False when it is frozen already."""
    if is_frozen(pid, proc=proc, cgroups=cgroups):
        return False
    file, frozen, _ = _freezer(pid, proc, cgroups)
    file.write_text(frozen)
    end = time.monotonic() + SETTLE_SECONDS
    while not is_frozen(pid, proc=proc, cgroups=cgroups):  # version 1 says FREEZING in between
        if time.monotonic() > end:
            raise NotFrozen(f"the cgroup of process {pid} does not freeze")
        time.sleep(0.005)
    return True


def thaw(pid: int, *, proc: Path = PROC, cgroups: Path = CGROUPS) -> None:
    """Let the process's cgroup go: in version 1 a frozen process cannot even die."""
    file, _, thawed = _freezer(pid, proc, cgroups)
    file.write_text(thawed)


def _freezer(pid: int, proc: Path, cgroups: Path) -> tuple[Path, str, str]:
    """Its file, and what it says of frozen and of thawed."""
    for line in (proc / str(pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "freezer" in controllers.split(","):
            name, frozen, thawed = _V1
            return cgroups / "freezer" / path.lstrip("/") / name, frozen, thawed
        if not controllers:
            unified = cgroups / path.lstrip("/") / _V2[0]
            if unified.exists():
                return unified, *_V2[1:]
    raise FileNotFoundError(f"process {pid} is in no cgroup that can be frozen")
