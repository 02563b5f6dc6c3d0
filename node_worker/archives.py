"""Folders into archives and back, with all that a file can have: owners, modes, links, holes,
extended attributes, devices. GNU tar does it. Sockets are left out; CRIU makes them again.
"""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Final

import msgspec

from schemas import reasons

TIMEOUT: Final = 600.0

_KEEP_ALL: Final = ("--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*")
_LAST_LINES: Final = 5
_NO_ROOM: Final = ("No space left on device", "Disk quota exceeded", "Wrote only ")
_CHANGED: Final = ("file changed as we read it", "File removed before we read it", "shrank by")


class ArchiveFailed(Exception):
    """A folder could not be taken along or brought back."""

    def __init__(self, message: str, *, reason: str, advice: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.advice = advice


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is archived, in the words of a failure."""

    name: str
    reason: str
    left_out: tuple[str, ...] = ()
    """Extended attributes that belong to the old place alone."""


async def pack(folder: Path, archive: Path, subject: Subject, *, timeout: float = TIMEOUT) -> int:
    """Archive what is in the folder; the size of the archive. Nobody may write there meanwhile."""
    try:
        await _tar(
            "--create",
            "--format=posix",
            "--sparse",
            "--one-file-system",
            "--atime-preserve=system",
            *(f"--xattrs-exclude={name}" for name in subject.left_out),
            *_KEEP_ALL,
            f"--file={archive}",
            f"--directory={folder}",
            ".",
            subject=subject,
            timeout=timeout,
        )
    except BaseException:
        _drop(archive)
        raise
    return _made_private(archive)


async def unpack(
    archive: Path, folder: Path, subject: Subject, *, timeout: float = TIMEOUT
) -> None:
    """Bring everything back into a folder that nobody else uses."""
    await _tar(
        "--extract",
        "--same-owner",
        "--preserve-permissions",
        *_KEEP_ALL,
        f"--file={archive}",
        f"--directory={folder}",
        subject=subject,
        timeout=timeout,
    )


def _drop(archive: Path) -> None:
    archive.unlink(missing_ok=True)


def _made_private(archive: Path) -> int:
    archive.chmod(0o600)
    return archive.stat().st_size


async def _tar(*arguments: str, subject: Subject, timeout: float) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            "tar",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise ArchiveFailed(
            "there is no `tar` on this node", reason=subject.reason, advice="Install GNU tar."
        ) from error
    try:
        async with asyncio.timeout(timeout):
            _, complaints = await process.communicate()
    except TimeoutError as error:
        raise ArchiveFailed(
            f"tar did not end within {timeout:.0f} s",
            reason=subject.reason,
            advice=f"See how large {subject.name} is.",
        ) from error
    finally:
        await _ended(process)
    if process.returncode:
        raise _failure(complaints.decode("utf-8", "replace"), subject)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Leave no tar behind, neither after a time-out nor after a cancellation."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # it has ended just now
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _failure(complaints: str, subject: Subject) -> ArchiveFailed:
    lines = complaints.strip().splitlines()[-_LAST_LINES:]
    message = f"tar failed over {subject.name}: " + "; ".join(lines)
    if any(words in complaints for words in _NO_ROOM):
        return ArchiveFailed(message, reason=reasons.DISK_FULL, advice="Free space and try again.")
    if any(words in complaints for words in _CHANGED):
        advice = "Somebody else writes there; end that, or checkpoint all that do at once."
        return ArchiveFailed(message, reason=subject.reason, advice=advice)
    return ArchiveFailed(
        message,
        reason=subject.reason,
        advice="See tar's words; GNU tar with --xattrs is needed.",
    )
