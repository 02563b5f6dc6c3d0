"""Resumes a container from a checkpoint on disk, step by step.

resolve, fit, verify: nothing is touched. verify: the folder holds what was sealed, every byte that
is interpreted is right, and the image is there. prepare: a fresh root filesystem with the changes
of the checkpoint, and the record that names it. create: containerd makes the task. memory: it is
right as well; it was verified meanwhile. start: CRIU brings the processes back. gpu: memory back on
the GPU; this commits. settle: what the container had before is cleared away.

Whatever fails: the task is deleted, the record and the snapshot are as before. The snapshot's key
is the job's own, because containerd's clean-up after a failed restore can empty a snapshot.
"""

import asyncio
import contextlib
import uuid
from pathlib import Path
from typing import Final

import msgspec

from kybernate import tasks
from kybernate.store import Damage, Damaged, read_manifest
from node_worker import criu_images, criu_process, folders, host, rootfs, runc_state
from node_worker.actors import Means, Step, StepActor
from node_worker.containerd.options import with_root
from node_worker.containerd.port import (
    GC_ROOT_LABEL,
    Container,
    Mount,
    NotFound,
    Packed,
    RestorePaths,
    RuntimeProblem,
    Stdio,
    TaskStatus,
)
from node_worker.dump import restore_failure
from node_worker.faults import Refused
from node_worker.gpu import group, obstacles, pairing
from node_worker.gpu.hugepages import huge_pages
from node_worker.holding import refuse
from node_worker.resumed import renamed_streams, resumed_spec
from node_worker.surroundings import numbered_outside
from node_worker.tasks_of import ALIVE, Tasks
from node_worker.threads import in_thread
from node_worker.verification import Verification
from schemas import reasons
from schemas.base import Record
from schemas.gpus import GpuProcess
from schemas.manifest import IMAGES_FOLDER, ROOTFS_FILE, Manifest, PartRecord, part_folder
from schemas.messages import Job, Restored
from schemas.orders import RestoreOrder

JOB_LABEL: Final = "kybernate.io/restored-by"
"""Tells the record that a job made from the one that was there before."""
SPEC_TYPE: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


class RestoreNotes(Record, frozen=True, kw_only=True):
    before: Container | None = None
    """The record that was there."""
    snapshotter: str = ""
    pid: int = 0
    gpu_processes: tuple[GpuProcess, ...] = ()
    pairs: dict[str, str] = {}


class RestoreActor(StepActor[RestoreNotes]):
    def __init__(self, means: Means, job: Job, order: RestoreOrder) -> None:
        self._means = means
        self._runtime = means.runtime
        self._job = job
        self._order = order
        self._space = order.target.namespace
        self._id = order.target.container
        self._key = f"kybernate-{job.id}"
        self._work = means.settings.work(job.id)
        self._scratch = str(uuid.uuid5(uuid.NAMESPACE_OID, job.id))  # not shared with other jobs
        self._tasks = Tasks(means.runtime, order.target)
        self._folder = Path()
        self._files = Path()
        """Where those of the container itself are."""
        self._images = Path()
        self._manifest: Manifest
        self._part: PartRecord
        self._mounts: tuple[Mount, ...] = ()
        self._has_task = False
        self._verification: Verification | None = None
        self._filling: asyncio.Task[None] | None = None
        super().__init__(
            RestoreNotes,
            (
                Step(name="resolve", do=self._resolve, undo=self._unresolve),
                Step(name="fit", do=self._fit),
                Step(name="verify", do=self._verify, long=True),
                Step(name="prepare", do=self._prepare, undo=self._unprepare),
                Step(name="create", do=self._create, undo=self._delete_task),
                Step(name="memory", do=self._verify_memory, long=True),
                Step(name="start", do=self._start, undo=self._delete_task, long=True),
                Step(name="gpu", do=self._bring_gpu_back),
                Step(name="settle", do=self._settle),
            ),
            commit="gpu",
        )

    async def landed(self, notes: RestoreNotes) -> bool:
        task = await self._tasks.found()
        if not notes.pid or task is None or task.pid != notes.pid:
            return False
        gpu_is_back = await group.all_running(
            self._means.gpu, [process.pid for process in notes.gpu_processes]
        )
        return task.status is TaskStatus.RUNNING and gpu_is_back

    async def result(self, notes: RestoreNotes) -> Restored:
        return Restored(target=self._order.target, pid=notes.pid, checkpoint=self._order.checkpoint)

    # looking

    async def _resolve(self, _: RestoreNotes) -> RestoreNotes:
        now = tasks.together(self._tasks.container(), self._tasks.found())
        before, task = (await tasks.together(self._open(), now))[1]
        self._has_task = task is not None
        if task is not None and task.status in ALIVE:
            raise Refused(
                reasons.ALREADY_RUNNING,
                f"container {self._id} is {task.status}",
                advice="End it first, or restore under another name (--name).",
            )
        if before is not None and self._order.target != self._part.target:
            raise Refused(
                reasons.ALREADY_EXISTS,
                f"there is another container {self._id} already",
                advice="Choose another name (--name), or delete that container.",
            )
        return RestoreNotes(before=before, snapshotter=self._part.container.snapshotter)

    async def _open(self) -> None:
        """Find the checkpoint, begin to verify it, and look for what it stands on."""
        self._folder, self._manifest = await in_thread(self._opened)
        self._part = self._found_part()
        self._files = self._folder / part_folder(self._part.name)
        self._verification = Verification(self._folder, self._manifest, self._part.name)

    def _opened(self) -> tuple[Path, Manifest]:
        folder = self._means.store.folder(self._order.checkpoint)
        manifest = read_manifest(folder, digest=self._order.digest)
        if manifest.id != self._order.checkpoint:
            raise Damaged(Damage.OTHER_CHECKPOINT, folder.name)
        return folder, manifest

    def _found_part(self) -> PartRecord:
        if (part := self._manifest.part(self._order.part)) is not None:
            return part
        names = ", ".join(part.name for part in self._manifest.parts)
        raise Refused(
            reasons.INVALID_REQUEST,
            f"checkpoint {self._manifest.id} has no container {self._order.part}; it has {names}",
            advice="Name one of them (--container).",
        )

    async def _unresolve(self, _: RestoreNotes) -> None:
        """Nothing reads the checkpoint any more."""
        if self._verification is not None:
            await self._verification.end()
        await in_thread(self._clear_folders)

    async def _fit(self, notes: RestoreNotes) -> RestoreNotes:
        host.check_fits(self._manifest.host, self._means.host)
        if not self._part.gpu_processes:
            return notes
        now = await self._means.gpu.facts()
        pairs = pairing.pair(
            self._manifest.gpus,
            now,
            processes=self._manifest.gpu_processes,
            wanted=self._order.gpu_map,
        )
        refuse(obstacles.restore_obstacles(self._manifest.gpus, now, pairs))
        return msgspec.structs.replace(notes, pairs=pairs)

    @property
    def _verifying(self) -> Verification:
        if self._verification is None:
            raise AssertionError("the folder is verified from resolve on")
        return self._verification

    async def _verify(self, _: RestoreNotes) -> None:
        await tasks.all_or_none((self._verifying.interpreted, self._find_image()))

    async def _find_image(self) -> None:
        record = self._part.container
        if not record.parent_snapshot:
            return
        try:
            await self._runtime.snapshot(self._space, record.snapshotter, record.parent_snapshot)
        except NotFound as error:
            raise Refused(
                reasons.IMAGE_MISSING,
                f"the image {record.image or '(unnamed)'} of the checkpoint is not unpacked in "
                f"namespace {self._space}: there is no snapshot {record.parent_snapshot}",
                advice="Pull the image on this node (into that namespace), then try again.",
            ) from error

    async def _verify_memory(self, _: RestoreNotes) -> None:
        await self._verifying.memory

    # making

    async def _prepare(self, notes: RestoreNotes) -> None:
        """Snapshot and record at once."""
        made_both = tasks.together(self._snapshot(), self._write_record(notes.before))
        _, self._images = await tasks.together(made_both, in_thread(self._prepare_images))

    async def _snapshot(self) -> None:
        record = self._part.container
        self._mounts = await self._runtime.prepare_snapshot(
            self._space,
            record.snapshotter,
            self._key,
            record.parent_snapshot,
            {GC_ROOT_LABEL: self._job.id},
        )
        self._filling = asyncio.create_task(rootfs.apply(self._mounts, self._files / ROOTFS_FILE))

    async def _write_record(self, before: Container | None) -> None:
        write = self._runtime.replace_container if before else self._runtime.create_container
        await write(self._space, self._made_from(before))

    def _prepare_images(self) -> Path:
        """The images; a changed copy of them where CRIU could not restore them well."""
        self._clear_folders()
        self._work.mkdir(mode=0o700, parents=True)
        images = self._files / IMAGES_FOLDER
        if not criu_images.needs_changes(images):
            return images
        copy = self._means.store.scratch(self._job.id) / IMAGES_FOLDER
        criu_images.copy_changed(images, copy)
        return copy

    async def _unprepare(self, notes: RestoreNotes) -> None:
        await _let_go(self._filling)
        await self._put_record_back(notes)
        await self._runtime.remove_snapshot(self._space, notes.snapshotter, self._key)

    def _made_from(self, before: Container | None) -> Container:
        record = self._part.container
        labels = before.labels if before else record.labels
        type_url = before.spec.type_url if before else SPEC_TYPE
        was = self._part.target.container
        return Container(
            id=self._id,
            spec=resumed_spec(
                Packed(type_url=type_url, value=record.spec),
                self._means.settings.criu_configs,
                was=was,
                now=self._id,
                cgroup_parent=self._means.settings.cgroup_parent,
            ),
            image=record.image,
            labels={**labels, JOB_LABEL: self._job.id},
            snapshotter=record.snapshotter,
            snapshot_key=self._key,
            runtime=record.runtime,
            runtime_options=self._runtime_options(),
            sandbox=before.sandbox if before else "",
        )

    def _runtime_options(self) -> Packed | None:
        record, root = self._part.container, self._means.settings.runc_root
        own = Packed(type_url=record.runtime_options_type, value=record.runtime_options)
        options = own if own.type_url else None
        return options if root is None else with_root(options, root)

    async def _put_record_back(self, notes: RestoreNotes) -> None:
        """Only of a record that this job has written: another one is somebody else's."""
        now = await self._tasks.container()
        if now is None or now.labels.get(JOB_LABEL) != self._job.id:
            return
        if notes.before is None:
            await self._runtime.delete_container(self._space, self._id)
        else:
            await self._runtime.replace_container(self._space, notes.before)

    async def _create(self, _: RestoreNotes) -> None:
        if self._has_task:  # an ended one, or there would have been no way here
            await self._tasks.end()
        if self._filling is not None:
            await self._filling
        streams = renamed_streams(
            self._part.container.streams, self._part.target.container, self._id
        )
        await self._runtime.create_task(
            self._space,
            self._id,
            mounts=self._mounts,
            stdio=Stdio(stdout=streams.stdout, stderr=streams.stderr),
            restore=RestorePaths(image_path=str(self._images), work_path=str(self._work)),
            options=self._runtime_options(),
        )

    async def _delete_task(self, _: RestoreNotes) -> None:
        """A CRIU that outlived containerd must not go on making processes."""
        await criu_process.end_in(self._work)
        now = await self._tasks.container()
        if now is not None and now.labels.get(JOB_LABEL) == self._job.id:
            await self._tasks.end()
            await in_thread(runc_state.clear, self._space, now)

    async def _start(self, notes: RestoreNotes) -> RestoreNotes:
        wanted = self._part.gpu_processes
        try:
            # CRIU touches the memory first from which the driver will read.
            async with huge_pages() if wanted else contextlib.nullcontext():
                pid = await self._runtime.start_task(self._space, self._id)
        except RuntimeProblem as error:
            raise await restore_failure(error, self._work) from error
        found = await self._found_again(wanted) if wanted else ()
        return msgspec.structs.replace(notes, pid=pid, gpu_processes=found)

    async def _found_again(self, wanted: tuple[GpuProcess, ...]) -> tuple[GpuProcess, ...]:
        """All of them: one that is not known would wait for its GPU memory for ever."""
        seen = await in_thread(self._means.look, await self._tasks.pids())
        found = numbered_outside(wanted, seen.processes)
        if len(found) < len(wanted):
            raise Refused(
                reasons.RESTORE_FAILED,
                f"of {len(wanted)} processes with GPU memory only {len(found)} are there again",
                advice="See the container's own output for why a process has ended.",
            )
        return found

    async def _bring_gpu_back(self, notes: RestoreNotes) -> None:
        pids = [process.pid for process in notes.gpu_processes]
        if pids:
            left = group.time_left(self._job.deadline)
            await group.restore_all(self._means.gpu, pids, notes.pairs or None, timeout=left)
            await group.unlock_all(self._means.gpu, pids)

    # clearing away

    async def _settle(self, notes: RestoreNotes) -> None:
        await asyncio.gather(self._remove_old(notes.before), in_thread(self._clear_folders))

    async def _remove_old(self, before: Container | None) -> None:
        if before is not None and before.snapshot_key not in {"", self._key}:
            await self._runtime.remove_snapshot(
                self._space, before.snapshotter, before.snapshot_key
            )

    def _clear_folders(self) -> None:
        self._means.store.discard_scratch(self._job.id)
        folders.remove(self._work)


async def _let_go(work: "asyncio.Task[None] | None") -> None:
    """End what runs beside the steps; the failure that is told is another one's."""
    if work is not None:
        await tasks.end(work)
        if not work.cancelled():
            work.exception()
