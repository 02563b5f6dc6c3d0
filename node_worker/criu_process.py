"""Finds and ends CRIU processes that work in a folder.

runc starts CRIU without a path in its arguments, but CRIU holds the folders of its images and of
its log open. It outlives a containerd that dies, and would go on beside whatever undoes its work.
runc itself, which waits for CRIU, has the folder in its arguments; it ends by itself and clears
up while it does, so it is given time.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from node_worker.threads import in_thread

PROC: Final = Path("/proc")
END_SECONDS: Final = 10.0


class StillThere(Exception):
    """A CRIU process that was killed does not end."""


async def end_in(work: Path) -> None:
    """End every CRIU at work in this folder, and wait until it and its runc are gone."""
    end = time.monotonic() + END_SECONDS
    while left := await in_thread(_at_work, work):
        if time.monotonic() > end:
            raise StillThere(f"processes {left} do not end; see whether one hangs in the kernel")
        for pid in await in_thread(working_in, work):
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.01)


def _at_work(work: Path) -> tuple[int, ...]:
    named = os.fsencode(work)
    runc = tuple(pid for pid, command in _commands() if named in command.split(b"\0"))
    return (*working_in(work), *runc)


def working_in(folder: Path) -> tuple[int, ...]:
    """CRIU processes that have something open below the folder."""
    place = folder.resolve()
    criu = (pid for pid, command in _commands() if b"criu" in command)
    return tuple(pid for pid in criu if _holds_any(pid, place))


def _commands() -> Iterator[tuple[int, bytes]]:
    for process in PROC.iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            yield int(process.name), (process / "cmdline").read_bytes()


def _holds_any(pid: int, folder: Path) -> bool:
    held: list[Path] = []
    with contextlib.suppress(OSError):  # it ended, or closed one, while we looked
        held.extend(name.readlink() for name in (PROC / str(pid) / "fd").iterdir())
    return any(path.is_relative_to(folder) for path in held)
