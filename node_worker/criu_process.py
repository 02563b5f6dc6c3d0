"""Finds and ends CRIU processes that work in a folder.

runc starts CRIU without a path in its arguments, but CRIU holds the folders of its images and of
its log open. It outlives a containerd that dies, and would go on beside whatever undoes its work.
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


async def end_in(*folders: Path) -> None:
    """End every CRIU at work in these folders, and wait until it is gone."""
    end = time.monotonic() + END_SECONDS
    while left := await in_thread(working_in, folders):
        if time.monotonic() > end:
            raise StillThere(f"CRIU ({left}) does not end; see whether it hangs in the kernel")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.01)


def working_in(folders: tuple[Path, ...]) -> tuple[int, ...]:
    resolved = tuple(folder.resolve() for folder in folders)
    return tuple(pid for pid in _criu_pids() if _holds_any(pid, resolved))


def _criu_pids() -> Iterator[int]:
    for process in PROC.iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            if b"criu" in (process / "cmdline").read_bytes():
                yield int(process.name)


def _holds_any(pid: int, folders: tuple[Path, ...]) -> bool:
    held: list[Path] = []
    with contextlib.suppress(OSError):  # it ended, or closed one, while we looked
        held.extend(name.readlink() for name in (PROC / str(pid) / "fd").iterdir())
    return any(path.is_relative_to(folder) for path in held for folder in folders)
