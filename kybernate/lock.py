"""One process at a time: a lock file, in which the one that has it writes its pid."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Locked(Exception):
    """Another process holds the lock; the message is its pid."""


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock while the block runs; Locked while somebody else does. Makes its folder."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise Locked(lock.read() or "unknown") from error
        lock.truncate(0)
        try:
            os.write(lock.fileno(), str(os.getpid()).encode())
        except OSError as error:  # names no file by itself
            raise OSError(error.errno, error.strerror, str(file)) from error
        yield
