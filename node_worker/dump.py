"""One dump by CRIU, watched: while containerd's call is out, images or log must grow."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from node_worker import criu_log, criu_process
from node_worker.containerd.port import DumpOptions, Runtime, RuntimeProblem, RuntimeUnavailable
from node_worker.faults import Refused
from node_worker.threads import in_thread
from schemas import reasons
from schemas.orders import Target

STALLED_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 1.0
LEAST_BYTES: Final = 1024 * 1024
"""A file system with less room is full."""
CALL_SECONDS: Final = 24 * 3600.0
"""The job's deadline and the watch end a dump, not the call's own time-out."""

Grown = Callable[[int], None]


class Folders(msgspec.Struct, frozen=True, kw_only=True):
    """Where CRIU writes its images and its log."""

    images: Path
    work: Path


async def dump(
    runtime: Runtime,
    target: Target,
    options: DumpOptions,
    *,
    grown: Grown,
    stalled: float = STALLED_SECONDS,
) -> None:
    """Dump the task, or say in words why CRIU did not."""
    folders = Folders(images=Path(options.image_path), work=Path(options.work_path))
    call = asyncio.create_task(
        runtime.checkpoint(target.namespace, target.container, options, timeout=CALL_SECONDS)
    )
    try:
        hung = await _watched(call, folders, grown, stalled)
    finally:
        if not call.done():
            call.cancel()
            await asyncio.wait({call})
    if hung:
        raise Refused(
            reasons.DUMP_FAILED,
            f"CRIU wrote nothing for {stalled:g} s and was ended",
            advice="See whether a process of the container hangs in the kernel (state D).",
        )
    try:
        call.result()
    except RuntimeProblem as error:
        raise await _told(error, folders, criu_log.DUMP_LOG, reasons.DUMP_FAILED) from error


async def restore_failure(error: RuntimeProblem, work: Path) -> Exception:
    """What to tell about a restore that failed, from CRIU's log."""
    folders = Folders(images=work, work=work)
    return await _told(error, folders, criu_log.RESTORE_LOG, reasons.RESTORE_FAILED)


async def _watched(
    call: "asyncio.Task[None]", folders: Folders, grown: Grown, stalled: float
) -> bool:
    """Wait for the call; whether CRIU was ended because it did not get on."""
    size, changed = -1, time.monotonic()
    while not (await asyncio.wait({call}, timeout=min(LOOK_SECONDS, stalled / 4)))[0]:
        if (now := await in_thread(_size, folders)) != size:
            size, changed = now, time.monotonic()
            grown(size)
        elif time.monotonic() - changed > stalled:
            await criu_process.end_in(folders.work)
            return True
    return False


def _size(folders: Folders) -> int:
    files = (file for folder in (folders.images, folders.work) for file in folder.iterdir())
    return sum(file.stat().st_size for file in files)


async def _told(error: RuntimeProblem, folders: Folders, log: str, otherwise: str) -> Exception:
    if isinstance(error, RuntimeUnavailable):
        return error
    text = await in_thread(criu_log.read_log, folders.work, log)
    cause = criu_log.explain(text, otherwise=otherwise)
    if cause.reason == otherwise and (full := await in_thread(_full, folders)):
        return Refused(
            reasons.DISK_FULL,
            f"the file system of {full} is full\n{cause}",
            advice="Free space, delete checkpoints, or move the store to a larger file system.",
        )
    if text:
        return Refused(cause.reason, str(cause), advice=cause.advice, retriable=cause.passes)
    return Refused(
        otherwise,
        f"CRIU left no log; containerd says: {error}",
        advice="See that CRIU is installed where containerd finds it, and passes `criu check`.",
    )


def _full(folders: Folders) -> Path | None:
    """The folder without room: CRIU may not have been able to write even that into its log."""
    for folder in (folders.images, folders.work):
        room = os.statvfs(folder)
        if room.f_bavail * room.f_frsize < LEAST_BYTES:
            return folder
    return None
