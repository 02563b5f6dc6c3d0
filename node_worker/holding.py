"""The steps with which every checkpoint begins: find the containers, look what stands in the way,
take their CUDA processes off the GPU, pause them.

The driver needs the threads of the processes running, so lock and gpu come before pause, and on
the way back after resume. Each step is done for all containers before the next one begins.
"""

import sys
import time
from collections.abc import Iterable
from typing import Final

import msgspec

from kybernate.tasks import all_of
from node_worker import preflight, volumes
from node_worker.actors import Means, Step
from node_worker.containerd.port import Container, Task
from node_worker.criu_program import takes_limits_from_proc
from node_worker.faults import Refused
from node_worker.gpu import evidence, group, obstacles
from node_worker.gpu.evidence import Evidence
from node_worker.gpu.hugepages import huge_pages
from node_worker.processes import parents
from node_worker.surroundings import Surroundings, numbered_inside
from node_worker.tasks_of import Tasks
from node_worker.threads import in_thread
from schemas.base import Record
from schemas.failures import Failure
from schemas.gpus import GpuProcess
from schemas.messages import Job
from schemas.orders import CheckpointOrder, Part, Place

LOCK_SHARE: Final = 0.5
"""How much of the time up to the deadline the GPU's work may take to come to rest."""


class HeldNotes(Record, frozen=True, kw_only=True):
    """What undoing, and releasing, has to know."""

    pids: tuple[int, ...] = ()
    """Of the tasks, in the order of the parts."""
    gpu_processes: tuple[GpuProcess, ...] = ()

    @property
    def gpu_pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self.gpu_processes)


class Held:
    """One container, held for a checkpoint: what was found of it."""

    container: Container
    task: Task
    pids: tuple[int, ...]
    seen: Surroundings
    other_users: bool
    """Whether CRIU can dump processes of other users than root."""

    def __init__(self, means: Means, part: Part, *, alone: bool) -> None:
        self.part = part
        self._alone = alone
        self.tasks = Tasks(means.runtime, part.target)

    async def find(self) -> None:
        self.container, self.task, self.pids = await self.tasks.running()

    def own(self, processes: Iterable[GpuProcess]) -> tuple[GpuProcess, ...]:
        """Those of its processes, by their numbers inside."""
        own = [process for process in processes if process.pid in self.pids]
        return numbered_inside(own, self.seen.processes)

    def named(self, failure: Failure) -> Failure:
        """With the container's name, where there are several."""
        if self._alone:
            return failure
        message = f"container {self.part.name}: {failure.message}"
        return msgspec.structs.replace(failure, message=message)

    def others_can_be_dumped(self) -> bool:
        """Asks CRIU, but only where it depends on it."""
        processes = self.seen.processes
        return (
            self.seen.limits_told
            or all(process.of_root for process in processes)
            or all(takes_limits_from_proc(shim, self.container) for shim in parents(processes))
        )

    def shares_pids(self) -> bool:
        """Kubelet says by no word of its own whether the container has process IDs for itself."""
        first = {one.inner_pid for one in self.seen.processes if one.pid == self.task.pid}
        return volumes.UID_LABEL in self.container.labels and bool(first) and first != {1}


class Holding:
    """The containers of a checkpoint."""

    evidence: Evidence
    expected_bytes: int = 0
    pod_volumes = volumes.Seen()

    def __init__(self, means: Means, job: Job, order: CheckpointOrder) -> None:
        self._means = means
        self._job = job
        self._order = order
        alone = len(order.parts) == 1
        self.held = tuple(Held(means, part, alone=alone) for part in order.parts)

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

    async def have_ended(self, notes: HeldNotes) -> bool:
        pairs = self._with_pids(notes)
        return all([await one.tasks.has_ended(pid) for one, pid in pairs])

    async def end_tasks(self, notes: HeldNotes) -> None:
        """Those of a pod are deleted by containerd's CRI plugin. When somebody else is faster with
        that, kubelet 1.20 may take a minute to let go of the pod.
        """
        for_pod = self._order.pod is not None
        await all_of(
            one.tasks.kill(pid) if for_pod else one.tasks.end(pid)
            for one, pid in self._with_pids(notes)
        )

    async def _resolve(self, _: HeldNotes) -> HeldNotes:
        await all_of(one.find() for one in self.held)
        pids = [pid for one in self.held for pid in one.pids]
        self.evidence = await evidence.gather(self._means.gpu, pids)
        return HeldNotes(
            pids=tuple(one.task.pid for one in self.held), gpu_processes=self.evidence.processes
        )

    async def _preflight(self, _: HeldNotes) -> None:
        """Whatever stands in the way, told before anything is touched."""
        independent = self._order.independent_gpu_processes
        refuse(obstacles.checkpoint_obstacles(self.evidence, independent=independent))
        free = await in_thread(self._look)
        found = list(volumes.obstacles(self.pod_volumes))
        self.expected_bytes = self.pod_volumes.bytes
        for one in self.held:
            facts = self._facts(one)
            found += map(one.named, preflight.obstacles(facts))
            self.expected_bytes += preflight.memory_bytes(facts)
        refuse((*found, *preflight.lack_of_disk(self.expected_bytes, free)))

    def _look(self) -> int:
        """At everything, in one thread; the bytes that are free on disk."""
        for one in self.held:
            one.seen = self._means.look(one.pids)
            one.other_users = one.others_can_be_dumped()
        if self._order.place is not Place.DISK:
            return sys.maxsize
        self.pod_volumes = volumes.look([(one.container, one.task.pid) for one in self.held])
        return self._means.store.free_bytes()

    def _facts(self, one: Held) -> preflight.Facts:
        on_gpu = [process for process in self.evidence.processes if process.pid in one.pids]
        return preflight.Facts(
            processes=one.seen.processes,
            connections=one.seen.connections,
            outside_tcp=self._order.outside_tcp,
            other_users=one.other_users,
            shared_pids=one.shares_pids(),
            terminal=one.task.stdio.terminal,
            cgroup_v1=one.seen.cgroup_v1,
            free_memory=one.seen.free_memory,
            gpu_bytes=obstacles.vram_bytes(on_gpu),
            gpu_pids=frozenset(process.pid for process in on_gpu),
        )

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
        await all_of(one.tasks.pause() for one in self.held)

    async def _resume(self, notes: HeldNotes) -> None:
        await all_of(one.tasks.resume(pid) for one, pid in self._with_pids(notes))

    def _with_pids(self, notes: HeldNotes) -> Iterable[tuple[Held, int]]:
        return zip(self.held, notes.pids, strict=True)


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
