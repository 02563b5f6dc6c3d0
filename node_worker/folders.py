"""Removes folders that CRIU has worked in.

A CRIU that is killed while it restores leaves the host's cgroups mounted in its folder: they must
be unmounted first, for removing the folder would remove cgroups of others.
"""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mountinfo")

_MNT_DETACH: Final = 2
_POINT: Final = 4
"""The column of mountinfo that names the mount point."""


def remove(folder: Path) -> None:
    """Unmount what is mounted below, then remove all; nothing happens when it is not there."""
    for point in reversed(list(_mounted_below(folder.resolve()))):
        unmount(point)
    with suppress(FileNotFoundError):  # gone is what was asked for
        shutil.rmtree(folder)


def unmount(point: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(point), _MNT_DETACH):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(point))


def _mounted_below(folder: Path) -> Iterator[Path]:
    for line in MOUNTS.read_text().splitlines():
        point = Path(line.split()[_POINT].encode().decode("unicode_escape"))
        if point.is_relative_to(folder):
            yield point
