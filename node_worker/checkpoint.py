"""A checkpoint on disk, step by step.

resolve, preflight: nothing is touched. stage: a folder aside. lock, gpu, pause: the workload
stands still. dump, rootfs, hash: memory and changed files are written and hashed meanwhile.
seal: durable, then visible; this commits. release: the workload is ended, or runs on.

CRIU leaves the task as it was, paused; it is ended only when the checkpoint is durable.
"""

import asyncio
import contextlib
import logging
import time
from pathlib import Path

from kybernate import tasks, telemetry
from kybernate.store import Follower, NoSuchCheckpoint, manifest_digest, read_manifest, seal
from node_worker import criu_images, criu_log, criu_process, folders, freezer, rootfs
from node_worker.actors import Means, Progress, Step, StepActor
from node_worker.containerd.port import DumpOptions, Mount
from node_worker.dump import dump
from node_worker.facts import facts_of
from node_worker.faults import Refused
from node_worker.holding import HeldNotes, Holding
from node_worker.host import with_criu
from node_worker.surroundings import numbered_inside
from node_worker.threads import in_thread
from node_worker.volumes import Capture
from node_worker.watches import named_watches
from schemas import reasons
from schemas.manifest import (
    IMAGES_FOLDER,
    ROOTFS_FILE,
    CheckpointFacts,
    ContainerRecord,
    FileEntry,
    Manifest,
    StepTime,
    Streams,
)
from schemas.messages import Checkpointed, Job
from schemas.orders import CheckpointOrder

log = logging.getLogger(__name__)


class CheckpointActor(StepActor[HeldNotes]):
    def __init__(self, means: Means, job: Job, order: CheckpointOrder, progress: Progress) -> None:
        self._means = means
        self._job = job
        self._order = order
        self._progress = progress
        self._held = Holding(means, job, order)
        self._follower = Follower()
        self._staging = Path()
        self._work = means.settings.work(job.id)
        self._parent = ""
        self._mounts: tuple[Mount, ...] = ()
        self._archiving: asyncio.Task[int] | None = None
        self._volumes = Capture()
        self._files: tuple[FileEntry, ...] = ()
        self._times: list[StepTime] = []
        super().__init__(
            HeldNotes,
            (
                *self._held.first_steps,
                Step(name="stage", do=self._stage, undo=self._unstage),
                *self._held.holding_steps,
                Step(name="dump", do=self._dump, undo=self._undump, long=True),
                Step(name="rootfs", do=self._rootfs, long=True),
                Step(name="hash", do=self._hash, long=True),
                Step(name="seal", do=self._seal),
                Step(name="release", do=self._release),
            ),
            commit="seal",
        )

    async def do(self, step: str, notes: HeldNotes) -> HeldNotes:
        began = time.monotonic()
        after = await super().do(step, notes)
        self._times.append(StepTime(step=step, seconds=time.monotonic() - began))
        return after

    async def landed(self, _: HeldNotes) -> bool:
        """Whether the folder is there and this action's: another one's of that id is not ours."""
        return await in_thread(self._is_published)

    async def result(self, _: HeldNotes) -> Checkpointed:
        return Checkpointed(checkpoint=await in_thread(self._published_facts))

    async def _stage(self, _: HeldNotes) -> None:
        container, space = self._held.container, self._order.target.namespace
        if not container.snapshot_key:
            raise Refused(
                reasons.CANNOT_BE_CHECKPOINTED,
                "the container's root filesystem is not a snapshot of containerd",
                advice="Run the container from an image.",
            )
        key = (space, container.snapshotter, container.snapshot_key)
        asked = asyncio.gather(self._means.runtime.snapshot(*key), self._means.runtime.mounts(*key))
        (snapshot, self._mounts), self._staging = await tasks.together(
            asked, in_thread(self._new_folders)
        )
        self._parent = snapshot.parent
        self._follower.start(self._staging)

    def _new_folders(self) -> Path:
        with contextlib.suppress(NoSuchCheckpoint):  # as it should be
            folder = self._means.store.folder(self._order.checkpoint)
            raise Refused(reasons.ALREADY_EXISTS, f"there is a checkpoint in {folder} already")
        staging = self._means.store.staging(self._order.checkpoint)
        (staging / IMAGES_FOLDER).mkdir(mode=0o700)
        folders.remove(self._work)
        self._work.mkdir(mode=0o700, parents=True)
        if names := named_watches(self._held.seen.processes, self._held.task.pid):
            criu_images.write_names(self._work, names)
        return staging

    async def _unstage(self, _: HeldNotes) -> None:
        await in_thread(self._follower.stop)
        await in_thread(self._means.store.discard, self._order.checkpoint)
        await in_thread(folders.remove, self._work)

    async def _dump(self, notes: HeldNotes) -> None:
        images = self._staging / IMAGES_FOLDER
        self._archiving = asyncio.create_task(
            rootfs.capture(self._mounts, self._staging / ROOTFS_FILE)
        )
        self._volumes.start(self._held.pod_volumes.volumes, self._staging)
        options = DumpOptions(
            image_path=str(images),
            work_path=str(self._work),
            open_tcp=True,
            file_locks=True,
        )
        await dump(self._means.runtime, self._order.target, options, grown=self._grown)
        await in_thread(_hold_still, notes.pid)

    def _grown(self, size: int) -> None:
        self._progress.progress("dump", size, max(size, self._held.expected_bytes))

    async def _undump(self, _: HeldNotes) -> None:
        """A CRIU that outlived containerd must not go on beside what comes now."""
        await criu_process.end_in(self._work)
        await self._volumes.stop()
        if self._archiving is not None:
            await tasks.end(self._archiving)
            self._archiving.cancelled() or self._archiving.exception()  # the dump's failure counts

    async def _rootfs(self, _: HeldNotes) -> None:
        if self._archiving is not None:
            await self._archiving
        await self._volumes.finish()

    async def _hash(self, _: HeldNotes) -> None:
        self._files = await in_thread(self._follower.finish)

    async def _seal(self, _: HeldNotes) -> None:
        await in_thread(self._publish)

    def _publish(self) -> None:
        seal(self._staging, self._manifest())
        self._means.store.publish(self._order.checkpoint)

    def _published_facts(self) -> CheckpointFacts:
        folder = self._means.store.folder(self._order.checkpoint)
        return facts_of(read_manifest(folder), manifest_digest(folder))

    def _is_published(self) -> bool:
        try:
            folder = self._means.store.folder(self._order.checkpoint)
        except NoSuchCheckpoint:
            return False
        return read_manifest(folder).action == self._job.action

    async def _release(self, notes: HeldNotes) -> None:
        go = self._held.let_run if self._order.leave_running else self._held.end_task
        await tasks.together(go(notes), in_thread(folders.remove, self._work))

    def _manifest(self) -> Manifest:
        log = criu_log.read_log(self._work)
        processes = criu_images.processes(self._staging / IMAGES_FOLDER)
        return Manifest(
            id=self._order.checkpoint,
            action=self._job.action,
            target=self._order.target,
            created=time.time(),
            container=self._record(),
            host=with_criu(self._means.host, log),
            files=self._files,
            pids=tuple(process.pid for process in processes),
            gpus=self._held.evidence.gpus if self._held.evidence.processes else (),
            gpu_processes=numbered_inside(self._held.evidence.processes, self._held.seen.processes),
            memory_bytes=sum(one.size for one in self._files if criu_images.is_memory(one.path)),
            left_running=self._order.leave_running,
            timings=tuple(self._times),
            pod=self._order.pod,
            volumes=tuple(one.record for one in self._held.pod_volumes.volumes),
            traceparent=telemetry.traceparent(),
        )

    def _record(self) -> ContainerRecord:
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
