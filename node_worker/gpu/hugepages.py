"""Transparent huge pages set to `always` for a while, and put back as they were.

The driver's way to host memory is bound by the first touch of each page; with huge pages there
are 512 times fewer. The setting is the whole host's, so all workers of the host share one
folder: whoever comes first notes the value on disk, whoever leaves last puts it back. Who is
there holds a shared lock, which the kernel takes back also from a worker that was killed; the
next one to come, or `put_back`, then finds the note without anybody there.
"""

import asyncio
import contextlib
import fcntl
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FOLDER = Path("/run/kybernate/hugepages")
"""Gone after a reboot, as the setting is."""
WANTED = "always"
NOTE = "before"
CHANGE = "change.lock"
USERS = "users.lock"


def setting(path: Path = SETTING) -> str:
    """The value in force (`madvise`), or nothing where the kernel has no such setting."""
    try:
        found = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        return ""
    return found[1] if found else ""


@contextlib.asynccontextmanager
async def huge_pages(folder: Path = FOLDER, path: Path = SETTING) -> AsyncIterator[bool]:
    """Inside, huge pages are on; False where this host does not let them be set."""
    users = await asyncio.to_thread(_enter, folder, path)
    try:
        yield users is not None
    finally:
        if users is not None:
            _leave(folder, path, users)


def put_back(folder: Path = FOLDER, path: Path = SETTING) -> bool:
    """Undo what a worker left behind that was killed; whether there was anything."""
    if not (folder / NOTE).exists():
        return False
    with _changing(folder):
        return _put_back_if_last(folder, path)


def _enter(folder: Path, path: Path) -> int | None:
    """The descriptor that stands for being there, or None where nothing can be set."""
    now = setting(path)
    if not now:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _changing(folder):
            return _switch_on(folder, path, now)
    except OSError:
        return None


def _switch_on(folder: Path, path: Path, now: str) -> int:
    users = _open(folder / USERS)
    try:
        fcntl.flock(users, fcntl.LOCK_SH)
        if not (folder / NOTE).exists():
            _note(folder, now)
        if now != WANTED:
            path.write_text(WANTED)
    except OSError:
        os.close(users)
        _put_back_if_last(folder, path)
        raise
    return users


def _leave(folder: Path, path: Path, users: int) -> None:
    with _changing(folder):
        os.close(users)
        _put_back_if_last(folder, path)


def _put_back_if_last(folder: Path, path: Path) -> bool:
    users = _open(folder / USERS)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        before = (folder / NOTE).read_text()
        if setting(path) == WANTED != before:
            path.write_text(before)
        (folder / NOTE).unlink()
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return False  # others are there, nothing was noted, or nothing could be set
    finally:
        os.close(users)
    return True


def _note(folder: Path, value: str) -> None:
    """Durable before the setting changes, and never half written."""
    draft = folder / f"{NOTE}.new"
    draft.write_text(value)
    draft.replace(folder / NOTE)


@contextlib.contextmanager
def _changing(folder: Path) -> Iterator[None]:
    lock = _open(folder / CHANGE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
