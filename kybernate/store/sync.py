"""Getting files onto the disk: early and in the background while they grow, surely at the end."""

import ctypes
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_SYNC_FILE_RANGE_WRITE: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def start_writing(descriptor: int, start: int, length: int) -> None:
    """Have the kernel begin to write this range out; a hint, so a refusal changes nothing."""
    _sync_file_range(descriptor, start, length, _SYNC_FILE_RANGE_WRITE)


def sync_tree(folder: Path) -> None:
    """Make a folder and all below it durable and readable by their owner only.

    Everything is on its way before the first wait, so that the waits are short.
    """
    for path in _files(folder):
        with opened(path) as descriptor:
            start_writing(descriptor, 0, 0)
    for path in _files(folder):
        with opened(path) as descriptor:
            tighten(descriptor)
            os.fsync(descriptor)
    for below, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(below))


def sync_folder(folder: Path) -> None:
    with opened(folder) as descriptor:
        tighten(descriptor)
        os.fsync(descriptor)


def tighten(descriptor: int) -> None:
    """A memory image holds every secret of its process."""
    wanted = _FOLDER_MODE if stat.S_ISDIR(os.fstat(descriptor).st_mode) else _FILE_MODE
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != wanted:
        os.fchmod(descriptor, wanted)


@contextmanager
def opened(path: Path | str, *, folder: int | None = None) -> Iterator[int]:
    """A file open for reading; a symbolic link in its place is an error, a FIFO no trap."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    for below, _, names in os.walk(folder):
        for name in names:
            yield Path(below, name)
