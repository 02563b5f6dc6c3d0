"""Checkpoint and restore by containerd's calls alone, made durable: what Kybernate is held to."""

import asyncio
import os
import shutil
from pathlib import Path

from kybernate.embedded.workload import NAMESPACE
from node_worker.containerd.port import DumpOptions, RestorePaths, Runtime, Stdio


class Bare:
    def __init__(self, runtime: Runtime, id: str, log: Path, folder: Path) -> None:
        self._runtime = runtime
        self._id = id
        self._stdio = Stdio(stdout=log.as_uri(), stderr=log.as_uri())
        self._images = folder / "images"
        self._work = folder / "work"

    async def checkpoint(self) -> None:
        await self.dump()
        await self.seal()
        await self._runtime.delete_task(NAMESPACE, self._id)

    async def dump(self) -> None:
        for path in (self._images, self._work):
            path.mkdir(parents=True)
        options = DumpOptions(
            image_path=str(self._images),
            work_path=str(self._work),
            exit=True,
            open_tcp=True,
            file_locks=True,
        )
        await self._runtime.checkpoint(NAMESPACE, self._id, options)

    async def seal(self) -> None:
        await asyncio.to_thread(make_durable, self._images)

    async def restore(self) -> int:
        """The pid of its first process."""
        container = await self._runtime.container(NAMESPACE, self._id)
        mounts = await self._runtime.mounts(
            NAMESPACE, container.snapshotter, container.snapshot_key
        )
        paths = RestorePaths(image_path=str(self._images), work_path=str(self._work))
        await self._runtime.create_task(
            NAMESPACE,
            self._id,
            mounts=mounts,
            stdio=self._stdio,
            restore=paths,
            options=container.runtime_options,
        )
        return await self._runtime.start_task(NAMESPACE, self._id)

    async def clean(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._images.parent)


def make_durable(folder: Path) -> None:
    for path in (*folder.iterdir(), folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
