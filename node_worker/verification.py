"""A checkpoint's folder being verified beside the other steps of a restore.

First all that somebody makes sense of: CRIU's images, the changed files. Then the memory, which is
most of it and is only copied: it must be right before CRIU starts. Half of the cores are left to
the steps, which are waited for one after the other.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from kybernate import tasks
from kybernate.store import cores, verify
from node_worker.criu_images import is_memory
from node_worker.threads import in_thread
from schemas.manifest import Manifest, part_folder


class Verification:
    """Each part is a task that ends well, or with what is wrong."""

    def __init__(self, folder: Path, manifest: Manifest, part: str) -> None:
        """Of what a restore of this container reads; begins at once."""
        self._folder = folder
        self._manifest = manifest
        self._own = f"{part_folder(part)}/"
        self.interpreted = asyncio.create_task(self._verify(lambda path: not is_memory(path)))
        self.memory = asyncio.create_task(self._then_memory())

    async def end(self) -> None:
        """Return when nothing reads the folder any more."""
        for part in (self.memory, self.interpreted):
            await tasks.end(part)
            part.cancelled() or part.exception()  # whoever waited for it was told

    async def _then_memory(self) -> None:
        await self.interpreted
        await self._verify(is_memory)

    async def _verify(self, only: Callable[[str], bool]) -> None:
        await in_thread(
            verify,
            self._folder,
            self._manifest,
            lambda path: path.startswith(self._own) and only(path),
            threads=max(1, cores() // 2),
        )
