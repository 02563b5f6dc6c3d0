"""One container's share of a checkpoint on disk: its folder, its dump, its changed files."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path

from kybernate import tasks
from node_worker import criu_images, criu_log, criu_process, freezer, rootfs
from node_worker.actors import Means
from node_worker.containerd.port import DumpOptions, Mount
from node_worker.dump import Grown, dump
from node_worker.faults import Refused
from node_worker.holding import Held
from node_worker.threads import in_thread
from node_worker.watches import named_watches
from schemas import reasons
from schemas.gpus import GpuProcess
from schemas.manifest import (
    IMAGES_FOLDER,
    ROOTFS_FILE,
    ContainerRecord,
    FileEntry,
    PartRecord,
    Streams,
    part_folder,
)

log = logging.getLogger(__name__)


class PartOnDisk:
    """What the steps of a checkpoint do with one of its containers."""

    def __init__(self, means: Means, held: Held, work: Path) -> None:
        self._runtime = means.runtime
        self._held = held
        self._work = work
        self._folder = Path()
        self._parent = ""
        self._mounts: tuple[Mount, ...] = ()
        self._archiving: asyncio.Task[int] | None = None

    async def find_root(self) -> None:
        """Its root filesystem, whose changes come along."""
        container, space = self._held.container, self._held.part.target.namespace
        if not container.snapshot_key:
            raise Refused(
                reasons.CANNOT_BE_CHECKPOINTED,
                f"the root filesystem of container {self._held.part.name} is not a snapshot of "
                "containerd",
                advice="Run the container from an image.",
            )
        place = (space, container.snapshotter, container.snapshot_key)
        snapshot, self._mounts = await asyncio.gather(
            self._runtime.snapshot(*place), self._runtime.mounts(*place)
        )
        self._parent = snapshot.parent

    def make_folders(self, staging: Path) -> None:
        self._folder = staging / part_folder(self._held.part.name)
        for folder in (self._folder, self._folder / IMAGES_FOLDER, self._work):
            folder.mkdir(mode=0o700)
        if names := named_watches(self._held.seen.processes, self._held.task.pid):
            criu_images.write_names(self._work, names)

    def begin_archive(self) -> None:
        """Of the changed files, beside the dump: nobody writes to them any more."""
        archive = self._folder / ROOTFS_FILE
        self._archiving = asyncio.create_task(rootfs.capture(self._mounts, archive))

    async def archived(self) -> None:
        if self._archiving is not None:
            await self._archiving

    async def dump(self, pid: int, grown: Grown) -> None:
        options = DumpOptions(
            image_path=str(self._folder / IMAGES_FOLDER),
            work_path=str(self._work),
            open_tcp=True,
            file_locks=True,
        )
        try:
            await dump(self._runtime, self._held.part.target, options, grown=grown)
        except Refused as error:
            error.failure = self._held.named(error.failure)
            raise
        await in_thread(_hold_still, pid)

    async def end_dump(self) -> None:
        """A CRIU that outlived containerd must not go on beside what comes now."""
        await criu_process.end_in(self._work)
        if self._archiving is not None:
            await tasks.end(self._archiving)
            self._archiving.cancelled() or self._archiving.exception()  # the dump's failure counts

    def log(self) -> str:
        """What CRIU has said."""
        return criu_log.read_log(self._work)

    def record(self, files: Iterable[FileEntry], gpu_processes: Iterable[GpuProcess]) -> PartRecord:
        processes = criu_images.processes(self._folder / IMAGES_FOLDER)
        own = f"{part_folder(self._held.part.name)}/"
        return PartRecord(
            name=self._held.part.name,
            target=self._held.part.target,
            container=self._container(),
            pids=tuple(process.pid for process in processes),
            gpu_processes=self._held.own(gpu_processes),
            memory_bytes=sum(
                one.size
                for one in files
                if one.path.startswith(own) and criu_images.is_memory(one.path)
            ),
        )

    def _container(self) -> ContainerRecord:
        container, stdio = self._held.container, self._held.task.stdio
        options = container.runtime_options
        return ContainerRecord(
            image=container.image,
            labels=dict(container.labels),
            snapshotter=container.snapshotter,
            parent_snapshot=self._parent,
            runtime=container.runtime,
            runtime_options_type=options.type_url if options else "",
            runtime_options=options.value if options else b"",
            spec=container.spec.value,
            streams=Streams(stdout=stdio.stdout, stderr=stdio.stderr),
        )


def _hold_still(pid: int) -> None:
    """CRIU leaves the processes frozen, as it found them; should one not, they must not go on."""
    with contextlib.suppress(FileNotFoundError):  # it ended, which the rest will tell
        if freezer.freeze_if_thawed(pid):
            log.warning("process %d was let go by the dump, and is frozen again", pid)
