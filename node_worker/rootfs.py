"""Takes a container's changes to its root filesystem along, and brings them back.

The changes are what the snapshot's writable layer holds. Deleted files are in it as overlay
whiteouts (character devices 0:0), replaced folders carry `trusted.overlay.opaque`; both are
archived and brought back as they are, into the empty writable layer of a new snapshot. GNU tar
does it, because it keeps all that a file can have: owners, modes, links, holes, extended
attributes, devices. Sockets are left out; CRIU makes them again.
"""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from node_worker.containerd.port import Mount
from schemas import reasons

TIMEOUT: Final = 600.0

_UPPER: Final = "upperdir="
_KEEP_ALL: Final = ("--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*")
_LAST_LINES: Final = 5
_NO_ROOM: Final = ("No space left on device", "Disk quota exceeded", "Wrote only ")


class RootfsFailed(Exception):
    """The changes of the root filesystem could not be taken along or brought back."""

    def __init__(self, message: str, *, reason: str, advice: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.advice = advice


def writable_layer(mounts: Sequence[Mount]) -> Path:
    """Where a snapshot's own files lie: overlay's upper folder, or the bound folder itself."""
    for mount in mounts:
        if mount.type == "overlay":
            for option in mount.options:
                if option.startswith(_UPPER):
                    return Path(option.removeprefix(_UPPER))
        if mount.type == "bind" and "rw" in mount.options:
            return Path(mount.source)
    kinds = ", ".join(mount.type for mount in mounts) or "no mounts"
    raise RootfsFailed(
        f"the container's snapshot ({kinds}) has no writable layer that can be read",
        reason=reasons.ROOTFS_FAILED,
        advice="Use containerd's overlayfs or native snapshotter.",
    )


async def capture(mounts: Sequence[Mount], archive: Path, *, timeout: float = TIMEOUT) -> int:
    """Archive the writable layer; the size of the archive. Nobody may write to it meanwhile."""
    layer = writable_layer(mounts)
    try:
        await _tar(
            "--create",
            "--format=posix",
            "--sparse",
            "--atime-preserve=system",
            # where a file was copied up from: of no use with other lower folders
            "--xattrs-exclude=trusted.overlay.origin",
            *_KEEP_ALL,
            f"--file={archive}",
            f"--directory={layer}",
            ".",
            timeout=timeout,
        )
    except BaseException:
        _drop(archive)
        raise
    return _made_private(archive)


async def apply(mounts: Sequence[Mount], archive: Path, *, timeout: float = TIMEOUT) -> None:
    """Make the writable layer of an unused snapshot what the archive says, whatever it was."""
    layer = writable_layer(mounts)
    await asyncio.to_thread(_empty, layer)
    await _tar(
        "--extract",
        "--same-owner",
        "--preserve-permissions",
        *_KEEP_ALL,
        f"--file={archive}",
        f"--directory={layer}",
        timeout=timeout,
    )


def _drop(archive: Path) -> None:
    archive.unlink(missing_ok=True)


def _made_private(archive: Path) -> int:
    archive.chmod(0o600)
    return archive.stat().st_size


def _empty(folder: Path) -> None:
    with os.scandir(folder) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                shutil.rmtree(item.path)
            else:
                Path(item.path).unlink()


async def _tar(*arguments: str, timeout: float) -> None:
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
        raise RootfsFailed(
            "there is no `tar` on this node",
            reason=reasons.ROOTFS_FAILED,
            advice="Install GNU tar.",
        ) from error
    try:
        async with asyncio.timeout(timeout):
            _, complaints = await process.communicate()
    except TimeoutError as error:
        raise RootfsFailed(
            f"tar did not end within {timeout:.0f} s",
            reason=reasons.ROOTFS_FAILED,
            advice="See how large the changes of the container's root filesystem are.",
        ) from error
    finally:
        await _ended(process)
    if process.returncode:
        raise _failure(complaints.decode("utf-8", "replace"))


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Leave no tar behind, neither after a time-out nor after a cancellation."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # it has ended just now
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _failure(complaints: str) -> RootfsFailed:
    lines = complaints.strip().splitlines()[-_LAST_LINES:]
    message = "tar failed: " + "; ".join(lines)
    if any(words in complaints for words in _NO_ROOM):
        return RootfsFailed(message, reason=reasons.DISK_FULL, advice="Free space and try again.")
    return RootfsFailed(
        message,
        reason=reasons.ROOTFS_FAILED,
        advice="See tar's words; GNU tar with --xattrs is needed.",
    )
