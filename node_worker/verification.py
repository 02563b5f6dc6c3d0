"""A checkpoint's folder being verified beside the other steps of a restore.

First all that somebody makes sense of: CRIU's images, the changed files. Then the memory, which is
most of it and is only copied: it must be right before CRIU starts.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from kybernate import tasks
from kybernate.store import verify
from node_worker.criu_images import is_memory
from node_worker.threads import in_thread
from schemas.manifest import Manifest, part_folder


class Verification:
    """Each part is a task that ends well, or with what is wrong."""

    def __init__(self, folder: Path, manifest: Manifest, part: str) -> None:
        """Of what a restore of this container reads; begins at once with what is interpreted."""
        self._folder = folder
        self._manifest = manifest
        self._own = f"{part_folder(part)}/"
        self.interpreted = asyncio.create_task(self._verify(lambda path: not is_memory(path)))
        self._parts = [self.interpreted]

    def begin_memory(self) -> "asyncio.Task[None]":
        """While containerd makes the task, which takes as long: earlier it would take the processor
        from steps that are waited for one after the other.
        """
        memory = asyncio.create_task(self._verify(is_memory))
        self._parts.append(memory)
        return memory

    async def end(self) -> None:
        """Return when nothing reads the folder any more."""
        for part in self._parts:
            await tasks.end(part)
            part.cancelled() or part.exception()  # whoever waited for it was told

    async def _verify(self, only: Callable[[str], bool]) -> None:
        await in_thread(
            verify,
            self._folder,
            self._manifest,
            lambda path: path.startswith(self._own) and only(path),
        )
