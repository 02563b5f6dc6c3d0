"""Resumes a container whose state waits in memory.

The driver brings GPU memory back while the threads run, so resume comes before gpu; the threads
wait in the driver meanwhile. Going back takes the GPU memory off again and freezes the processes.
"""

import asyncio

from node_worker.actors import Means, Step, StepActor
from node_worker.containerd.port import TaskStatus
from node_worker.facts import Sleeper
from node_worker.faults import Refused
from node_worker.gpu import group
from node_worker.gpu.pairing import pair
from node_worker.gpu.port import GpuState, NotCuda, ProcessGone
from node_worker.tasks_of import Tasks
from schemas import reasons
from schemas.base import Record, decode
from schemas.messages import Job, Restored
from schemas.orders import RestoreOrder

LOCK_SECONDS = 10.0


class WakeNotes(Record, frozen=True, kw_only=True):
    sleeper: Sleeper | None = None
    pairs: dict[str, str] = {}


class WakeActor(StepActor[WakeNotes]):
    def __init__(self, means: Means, job: Job, order: RestoreOrder) -> None:
        self._means = means
        self._job = job
        self._order = order
        self._tasks = Tasks(means.runtime, order.target)
        super().__init__(
            WakeNotes,
            (
                Step(name="resolve", do=self._resolve),
                Step(name="resume", do=self._resume, undo=self._pause),
                Step(name="gpu", do=self._restore_gpu, undo=self._checkpoint_gpu),
                Step(name="settle", do=self._settle),
            ),
            commit="gpu",
        )

    async def landed(self, notes: WakeNotes) -> bool:
        sleeper = _sleeper(notes)
        task = await self._tasks.found()
        if task is None or task.pid != sleeper.pid or task.status is not TaskStatus.RUNNING:
            return False
        return await group.all_running(
            self._means.gpu, [process.pid for process in sleeper.gpu_processes]
        )

    async def result(self, notes: WakeNotes) -> Restored:
        return Restored(
            target=self._order.target, pid=_sleeper(notes).pid, checkpoint=self._order.checkpoint
        )

    async def _resolve(self, _: WakeNotes) -> WakeNotes:
        raw = self._means.ledger.sleeper(self._order.checkpoint)
        sleeper = None if raw is None else decode(raw, Sleeper)
        if sleeper is None or sleeper.target != self._order.target:
            raise Refused(
                reasons.CHECKPOINT_MISSING,
                f"no container waits in this node's memory as checkpoint {self._order.checkpoint} "
                f"of {self._order.target.container}",
                advice="A checkpoint in memory resumes on its node, under its own name.",
            )
        await self._check_waits(sleeper)
        pairs = pair(
            sleeper.facts.gpus,
            await self._means.gpu.facts(),
            processes=sleeper.gpu_processes,
            wanted=self._order.gpu_map,
        )
        return WakeNotes(sleeper=sleeper, pairs=pairs)

    async def _check_waits(self, sleeper: Sleeper) -> None:
        task = await self._tasks.found()
        if task is None or task.pid != sleeper.pid or task.status is not TaskStatus.PAUSED:
            status = "gone" if task is None else f"process {task.pid}, {task.status}"
            raise Refused(
                reasons.CHECKPOINT_MISSING,
                f"the container that waited in memory (process {sleeper.pid}) is {status}",
                advice="It was ended or resumed by somebody else; delete the checkpoint.",
            )

    async def _resume(self, notes: WakeNotes) -> None:
        await self._tasks.resume(_sleeper(notes).pid)

    async def _pause(self, notes: WakeNotes) -> None:
        task = await self._tasks.found()
        if task is not None and task.pid == _sleeper(notes).pid:
            await self._tasks.pause()

    async def _restore_gpu(self, notes: WakeNotes) -> None:
        pids = [process.pid for process in _sleeper(notes).gpu_processes]
        if pids:
            left = group.time_left(self._job.deadline)
            await group.restore_all(self._means.gpu, pids, notes.pairs or None, timeout=left)
            await group.unlock_all(self._means.gpu, pids)

    async def _checkpoint_gpu(self, notes: WakeNotes) -> None:
        await asyncio.gather(
            *(self._off_the_gpu(process.pid) for process in _sleeper(notes).gpu_processes)
        )

    async def _off_the_gpu(self, pid: int) -> None:
        gpu = self._means.gpu
        try:
            state = await gpu.state(pid)
            if state is GpuState.RUNNING:
                await gpu.lock(pid, LOCK_SECONDS)
            if state in {GpuState.RUNNING, GpuState.LOCKED}:
                await gpu.checkpoint(pid)
        except (NotCuda, ProcessGone):
            return  # nothing of it is on a GPU

    async def _settle(self, _: WakeNotes) -> None:
        self._means.ledger.forget_sleeper(self._order.checkpoint)


def _sleeper(notes: WakeNotes) -> Sleeper:
    if notes.sleeper is None:
        raise LookupError("the step before has not found the container")
    return notes.sleeper
