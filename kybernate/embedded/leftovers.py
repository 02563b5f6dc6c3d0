"""End and unmount what a private containerd left behind, also when it was killed.

Its daemon, shims, runc and CRIU carry `MARK` in their environment; the containers' processes are
in cgroups below one that is named after a hash of its folder.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

MARK = "KYBERNATE_CONTAINERD"
END_TIMEOUT = 60.0
CGROUPS = Path("/sys/fs/cgroup")


class StillThere(Exception):
    """Something of a dead containerd could not be ended."""


def cgroup_parent(home: Path) -> str:
    """The cgroup, in every hierarchy, below which the containers' own are."""
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()
    return f"/kybernate-{digest[:10]}"


def runc_root(home: Path) -> Path:
    """Where runc keeps the state of this containerd's containers; its default is shared."""
    return home / "runc"


def clear(home: Path) -> None:
    """End every process, unmount every mount and remove every cgroup and socket of `home`."""
    _end_processes(home)
    _unmount_below(home)
    _remove_cgroups(cgroup_parent(home))
    for socket in shim_sockets(home):
        socket.unlink(missing_ok=True)
    shutil.rmtree(runc_root(home), ignore_errors=True)


def end_daemon(home: Path, program: Path) -> None:
    """End the daemon alone: its shims and containers wait for the next. Without any, clear."""
    _end(home, lambda: [pid for pid in processes(home) if _runs(pid, program)])
    if not processes(home):
        clear(home)


def processes(home: Path) -> tuple[int, ...]:
    mark = f"{MARK}={home}".encode()
    in_cgroup = f":{cgroup_parent(home)}/".encode()
    return tuple(_pids(mark, in_cgroup))


def mounts(home: Path) -> tuple[str, ...]:
    """The mount points below `home`, deepest last."""
    below = f"{home}/"
    points = (_unescape(line.split()[4]) for line in _lines(Path("/proc/self/mountinfo")))
    return tuple(point for point in points if point.startswith(below))


def _pids(mark: bytes, in_cgroup: bytes) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            marked = mark in (folder / "environ").read_bytes().split(b"\0")
            if (marked or in_cgroup in (folder / "cgroup").read_bytes()) and not _is_zombie(folder):
                yield int(folder.name)


def _is_zombie(folder: Path) -> bool:
    return (folder / "stat").read_bytes().rpartition(b")")[2].split()[0] in b"ZX"


def _runs(pid: int, program: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/exe").samefile(program)
    except OSError:  # it ended while we looked
        return False


def _end_processes(home: Path) -> None:
    _end(home, lambda: _thawed(home))


def _thawed(home: Path) -> Sequence[int]:
    left = processes(home)
    if left:
        _thaw(cgroup_parent(home))
    return left


def _end(home: Path, unwanted: Callable[[], Sequence[int]]) -> None:
    """Kill until there are none of them."""
    end = time.monotonic() + END_TIMEOUT
    while left := unwanted():
        if time.monotonic() > end:
            raise StillThere(f"processes {left} of the containerd in {home} do not end")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _thaw(parent: str) -> None:
    """A frozen process cannot die (cgroup v1); a dump that was cut off leaves it frozen."""
    for folder in _cgroups(parent):
        for name, thawed in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            with contextlib.suppress(OSError):  # the other version's file, or the cgroup is gone
                if (folder / name).exists():
                    (folder / name).write_text(thawed)


def _unmount_below(home: Path) -> None:
    for point in reversed(mounts(home)):
        subprocess.run(["umount", "--lazy", point], check=True, timeout=END_TIMEOUT)


def _cgroups(parent: str) -> list[Path]:
    """The parent and everything below it in every hierarchy, the deepest first."""
    name = parent.removeprefix("/")
    tops = [path for path in (CGROUPS / name, *CGROUPS.glob(f"*/{name}")) if path.is_dir()]
    below = [path for top in tops for path in top.rglob("*") if path.is_dir()]
    return [*sorted(below, reverse=True), *tops]


def _remove_cgroups(parent: str) -> None:
    """A killed process that still frees its memory keeps its cgroup busy for a moment."""
    end = time.monotonic() + END_TIMEOUT
    while busy := [folder for folder in _cgroups(parent) if not _removed(folder)]:
        if time.monotonic() > end:
            raise StillThere(f"the cgroups {', '.join(map(str, busy))} stay busy")
        time.sleep(0.02)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in {errno.EBUSY, errno.ENOENT}:
            raise
        return error.errno == errno.ENOENT  # cpu and cpuacct can be one, seen twice
    return True


def shim_sockets(home: Path) -> list[Path]:
    """Shims put their sockets in containerd's common folder, whatever its configuration says."""
    bundles = home / "state" / "io.containerd.runtime.v2.task"
    files = (*bundles.glob("*/*/address"), *bundles.glob("*/*/bootstrap.json"))
    found = (re.findall(r'unix://(/[^"\s]+)', file.read_text()) for file in files)
    return [Path(path) for paths in found for path in paths]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def _unescape(point: str) -> str:
    return point.encode().decode("unicode_escape")
