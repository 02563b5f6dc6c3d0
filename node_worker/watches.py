"""Names for what a container's processes watch with inotify.

CRIU keeps a watched inode by its file handle. overlayfs opens no handles, so for a watch on the
container's root filesystem it needs a name; looking for one is left to whoever knows where. Here
it is looked for while the container still runs, and only when something is watched.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from node_worker.criu_images import NamedInode
from node_worker.processes import PROC, Process

_INOTIFY: Final = "anon_inode:inotify"
_WATCH: Final = re.compile(r"^inotify wd:\S+ ino:([0-9a-f]+) sdev:([0-9a-f]+) ", re.MULTILINE)
_KERNEL_MINOR_BITS: Final = 20
"""How the kernel itself, and so CRIU, writes a device's number."""

Inode = tuple[int, int]


def named_watches(
    processes: Iterable[Process], init: int, *, proc: Path = PROC
) -> tuple[NamedInode, ...]:
    """The watched inodes of the container's root filesystem that have a name there."""
    watched = {inode for process in processes for inode in _watched(process, proc)}
    root = proc / str(init) / "root"
    if not watched:
        return ()
    try:
        device = _device(root.stat())
    except (FileNotFoundError, ProcessLookupError):  # it has just ended; the dump will say so
        return ()
    return tuple(_named({inode for of, inode in watched if of == device}, f"{root}/", device))


def _watched(process: Process, proc: Path) -> Iterator[Inode]:
    for file in process.files:
        if file.target != _INOTIFY:
            continue
        try:
            text = (proc / str(process.pid) / "fdinfo" / str(file.descriptor)).read_text()
        except (FileNotFoundError, ProcessLookupError):  # closed just now
            continue
        for inode, device in _WATCH.findall(text):
            yield int(device, 16), int(inode, 16)


def _named(wanted: set[int], root: str, device: int) -> Iterator[NamedInode]:
    """Level by level, because what is watched lies rarely deep; no other file system is entered."""
    level = [root]
    while level and wanted:
        below: list[str] = []
        for path, status in _entries(level):
            if _device(status) != device:
                continue
            if status.st_ino in wanted:
                wanted.remove(status.st_ino)
                name = f"/{path.removeprefix(root)}"
                yield NamedInode(device=device, inode=status.st_ino, path=name)
            if stat.S_ISDIR(status.st_mode):
                below.append(f"{path}/")
        level = below


def _entries(folders: Iterable[str]) -> Iterator[tuple[str, os.stat_result]]:
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:  # it may be gone by now
            for entry in entries:
                with contextlib.suppress(OSError):  # gone too, or the mount of another user
                    yield entry.path, entry.stat(follow_symlinks=False)


def _device(status: os.stat_result) -> int:
    return os.major(status.st_dev) << _KERNEL_MINOR_BITS | os.minor(status.st_dev)
