"""The steps with which every checkpoint begins: find the container, look what stands in the way,
take its CUDA processes off the GPU, pause it.

The driver needs the threads of the processes running, so lock and gpu come before pause, and on
the way back after resume.
"""

import sys
import time
from typing import Final

from node_worker import preflight, volumes
from node_worker.actors import Means, Step
from node_worker.containerd.port import Container, Task
from node_worker.faults import Refused
from node_worker.gpu import evidence, group, obstacles
from node_worker.gpu.evidence import Evidence
from node_worker.gpu.hugepages import huge_pages
from node_worker.surroundings import Surroundings
from node_worker.tasks_of import Tasks
from node_worker.threads import in_thread
from schemas.base import Record
from schemas.failures import Failure
from schemas.gpus import GpuProcess
from schemas.messages import Job
from schemas.orders import CheckpointOrder, Place

LOCK_SHARE: Final = 0.5
"""How much of the time up to the deadline the GPU's work may take to come to rest."""


class HeldNotes(Record, frozen=True, kw_only=True):
    """What undoing, and releasing, has to know."""

    pid: int = 0
    gpu_processes: tuple[GpuProcess, ...] = ()

    @property
    def gpu_pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self.gpu_processes)


class Holding:
    """One container, held for a checkpoint."""

    container: Container
    task: Task
    pids: tuple[int, ...]
    evidence: Evidence
    seen: Surroundings
    expected_bytes: int = 0
    pod_volumes = volumes.Seen()

    def __init__(self, means: Means, job: Job, order: CheckpointOrder) -> None:
        self._means = means
        self._job = job
        self._order = order
        self._tasks = Tasks(means.runtime, order.target)

    @property
    def first_steps(self) -> tuple[Step[HeldNotes], ...]:
        return (
            Step(name="resolve", do=self._resolve),
            Step(name="preflight", do=self._preflight),
        )

    @property
    def holding_steps(self) -> tuple[Step[HeldNotes], ...]:
        return (
            Step(name="lock", do=self._lock, undo=self._release_gpu, long=True),
            Step(name="gpu", do=self._checkpoint_gpu, undo=self._release_gpu, long=True),
            Step(name="pause", do=self._pause, undo=self._resume),
        )

    async def let_run(self, notes: HeldNotes) -> None:
        """Let the workload run on, with its GPU."""
        await self._resume(notes)
        await self._release_gpu(notes)

    async def end_task(self, notes: HeldNotes) -> None:
        await self._tasks.end(notes.pid)

    async def _resolve(self, _: HeldNotes) -> HeldNotes:
        self.container, self.task, self.pids = await self._tasks.running()
        self.evidence = await evidence.gather(self._means.gpu, self.pids)
        return HeldNotes(pid=self.task.pid, gpu_processes=self.evidence.processes)

    async def _preflight(self, _: HeldNotes) -> None:
        """Whatever stands in the way, told before anything is touched."""
        self.seen = await in_thread(self._means.look, self.pids)
        independent = self._order.independent_gpu_processes
        refuse(obstacles.checkpoint_obstacles(self.evidence, independent=independent))
        if self._order.place is Place.DISK:
            self.pod_volumes = await in_thread(volumes.look, self.container, self.task.pid)
            refuse(tuple(volumes.obstacles(self.pod_volumes)))
        facts = await self._facts()
        refuse(preflight.obstacles(facts))
        self.expected_bytes = preflight.memory_bytes(facts) + facts.gpu_bytes

    async def _facts(self) -> preflight.Facts:
        on_disk = self._order.place is Place.DISK
        free = await in_thread(self._means.store.free_bytes) if on_disk else sys.maxsize
        return preflight.Facts(
            processes=self.seen.processes,
            connections=self.seen.connections,
            outside_tcp=self._order.outside_tcp,
            other_users=self.seen.other_users,
            shared_pids=self._shares_pids(),
            terminal=self.task.stdio.terminal,
            cgroup_v1=self.seen.cgroup_v1,
            free_disk=free,
            free_memory=self.seen.free_memory,
            volume_bytes=self.pod_volumes.bytes,
            gpu_bytes=obstacles.vram_bytes(self.evidence),
            gpu_pids=frozenset(process.pid for process in self.evidence.processes),
        )

    def _shares_pids(self) -> bool:
        """Kubelet says by no word of its own whether the container has process IDs for itself."""
        first = {one.inner_pid for one in self.seen.processes if one.pid == self.task.pid}
        return volumes.UID_LABEL in self.container.labels and bool(first) and first != {1}

    async def _lock(self, notes: HeldNotes) -> None:
        if notes.gpu_pids:
            now = time.time()
            deadline = now + LOCK_SHARE * (self._job.deadline - now)
            await group.lock_all(self._means.gpu, notes.gpu_pids, deadline=deadline)

    async def _checkpoint_gpu(self, notes: HeldNotes) -> None:
        if notes.gpu_pids:
            async with huge_pages():
                await group.checkpoint_all(
                    self._means.gpu, notes.gpu_pids, timeout=group.time_left(self._job.deadline)
                )

    async def _release_gpu(self, notes: HeldNotes) -> None:
        if notes.gpu_pids:
            await group.release_all(self._means.gpu, notes.gpu_pids)

    async def _pause(self, _: HeldNotes) -> None:
        await self._tasks.pause()

    async def _resume(self, notes: HeldNotes) -> None:
        await self._tasks.resume(notes.pid)


def refuse(found: tuple[Failure, ...]) -> None:
    """Refuse for the first obstacle, and name the others."""
    if not found:
        return
    first, *others = found
    also = "".join(f"\nalso: {other.message}" for other in others)
    raise Refused(
        first.reason,
        f"{first.message}{also}",
        advice=first.advice,
        retriable=all(one.retriable for one in found),
    )
