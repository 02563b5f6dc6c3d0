"""A checkpoint on disk, step by step.

resolve, preflight: nothing is touched. stage: a folder aside. lock, gpu, pause: the workload
stands still. dump, rootfs, hash: memory and changed files are written and hashed meanwhile.
seal: durable, then visible; this commits. retire, of a pod that is to go: it stands still until
kubelet has ended it. release: the workload is ended, or runs on.

CRIU leaves the task as it was, paused; it is ended only when the checkpoint is durable.
"""

import asyncio
import contextlib
import logging
import time
from functools import partial
from pathlib import Path
from typing import Final

from kybernate import telemetry
from kybernate.store import Follower, NoSuchCheckpoint, manifest_digest, read_manifest, seal
from kybernate.tasks import all_of, all_or_none, together
from node_worker import folders
from node_worker.actors import Means, Progress, Step, StepActor
from node_worker.facts import facts_of
from node_worker.faults import Refused
from node_worker.holding import HeldNotes, Holding
from node_worker.host import with_criu
from node_worker.parts import PartOnDisk
from node_worker.threads import in_thread
from node_worker.volumes import Capture
from schemas import reasons
from schemas.manifest import PARTS_FOLDER, CheckpointFacts, FileEntry, Manifest, StepTime
from schemas.messages import Checkpointed, Job
from schemas.orders import CheckpointOrder

log = logging.getLogger(__name__)

RETIRE: Final = "retire"
LOOK_SECONDS: Final = 0.1


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
        self._parts = tuple(
            PartOnDisk(means, held, self._work / held.part.name) for held in self._held.held
        )
        self._volumes = Capture()
        self._dumped: dict[PartOnDisk, int] = {}
        """Bytes, so far."""
        self._files: tuple[FileEntry, ...] = ()
        self._times: list[StepTime] = []
        self._facts: CheckpointFacts | None = None
        """Of what this process has sealed."""
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
                *((Step(name=RETIRE, do=self._retire),) if order.ends_pod else ()),
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
        if self._facts is None:
            self._facts = await in_thread(self._published_facts)
        return Checkpointed(checkpoint=self._facts)

    async def _stage(self, _: HeldNotes) -> None:
        roots = all_of(part.find_root() for part in self._parts)
        self._staging = (await together(in_thread(self._new_folders), roots))[0]
        self._follower.start(self._staging)

    def _new_folders(self) -> Path:
        with contextlib.suppress(NoSuchCheckpoint):  # as it should be
            folder = self._means.store.folder(self._order.checkpoint)
            raise Refused(reasons.ALREADY_EXISTS, f"there is a checkpoint in {folder} already")
        staging = self._means.store.staging(self._order.checkpoint)
        (staging / PARTS_FOLDER).mkdir(mode=0o700)
        folders.remove(self._work)
        self._work.mkdir(mode=0o700, parents=True)
        for part in self._parts:
            part.make_folders(staging)
        return staging

    async def _unstage(self, _: HeldNotes) -> None:
        await in_thread(self._follower.stop)
        await in_thread(self._means.store.discard, self._order.checkpoint)
        await in_thread(folders.remove, self._work)

    async def _dump(self, notes: HeldNotes) -> None:
        for part in self._parts:
            part.begin_archive()
        self._volumes.start(self._held.pod_volumes.volumes, self._staging)
        await all_or_none(
            part.dump(pid, partial(self._grown, part))
            for part, pid in zip(self._parts, notes.pids, strict=True)
        )

    def _grown(self, part: PartOnDisk, size: int) -> None:
        self._dumped[part] = size
        done = sum(self._dumped.values())
        self._progress.progress("dump", done, max(done, self._held.expected_bytes))

    async def _undump(self, _: HeldNotes) -> None:
        await all_of(part.end_dump() for part in self._parts)
        await self._volumes.stop()

    async def _rootfs(self, _: HeldNotes) -> None:
        await all_of(part.archived() for part in self._parts)
        await self._volumes.finish()

    async def _hash(self, _: HeldNotes) -> None:
        self._files = await in_thread(self._follower.finish)

    async def _seal(self, _: HeldNotes) -> None:
        await in_thread(self._publish)

    def _publish(self) -> None:
        manifest = self._manifest()
        digest = seal(self._staging, manifest)
        self._means.store.publish(self._order.checkpoint)
        self._facts = facts_of(manifest, digest)

    def _published_facts(self) -> CheckpointFacts:
        folder = self._means.store.folder(self._order.checkpoint)
        return facts_of(read_manifest(folder), manifest_digest(folder))

    def _is_published(self) -> bool:
        try:
            folder = self._means.store.folder(self._order.checkpoint)
        except NoSuchCheckpoint:
            return False
        return read_manifest(folder).action == self._job.action

    async def _retire(self, notes: HeldNotes) -> None:
        """Let kubelet end the containers: those that end otherwise it starts anew.

        The controllers delete the pod when they are told that the checkpoint is durable.
        """
        self._progress.durable(RETIRE, await self.result(notes))
        patience = self._means.settings.retire_seconds
        until = time.monotonic() + patience
        while not await self._held.have_ended(notes):
            if time.monotonic() >= until:
                words = (
                    f"the pod was not ended within {patience:.0f} s, so its containers were ended "
                    "here; kubelet may start them from their image until the pod is deleted"
                )
                log.warning("job %s: %s", self._job.id, words)
                self._progress.remark(RETIRE, words)
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _release(self, notes: HeldNotes) -> None:
        go = self._held.let_run if self._order.leave_running else self._held.end_tasks
        await together(go(notes), in_thread(folders.remove, self._work))

    def _manifest(self) -> Manifest:
        evidence = self._held.evidence
        return Manifest(
            id=self._order.checkpoint,
            action=self._job.action,
            created=time.time(),
            parts=tuple(part.record(self._files, evidence.processes) for part in self._parts),
            host=with_criu(self._means.host, self._parts[0].log()),
            files=self._files,
            gpus=evidence.gpus if evidence.processes else (),
            left_running=self._order.leave_running,
            timings=tuple(self._times),
            pod=self._order.pod,
            volumes=tuple(one.record for one in self._held.pod_volumes.volumes),
            traceparent=telemetry.traceparent(),
        )
