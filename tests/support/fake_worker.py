"""A node worker without a node: takes jobs, reports steps, answers as it is told.

Like the real one it answers a job that it knows by repeating how that ended.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from kybernate import telemetry
from kybernate.bus.port import Bus, BusProblem, Delivery, TopologyMissing
from kybernate.tasks import end
from schemas import reasons
from schemas.base import decode
from schemas.failures import Failure
from schemas.gpus import GpuFacts
from schemas.manifest import CheckpointFacts, HostFacts, PartFacts
from schemas.messages import (
    Cancel,
    Checkpointed,
    Deleted,
    EventKind,
    Job,
    JobEvent,
    Restored,
    Result,
)
from schemas.names import NODES_BUCKET, cancel_subject, event_subject, node_key
from schemas.nodes import Inventory
from schemas.orders import CheckpointOrder, RestoreOrder, Target

STEPS = ("resolve", "dump", "seal")


def inventory(
    node: str,
    *containers: str,
    ready: bool = True,
    at: float | None = None,
    gpus: tuple[GpuFacts, ...] = (),
) -> Inventory:
    now = time.time()
    return Inventory(
        node=node,
        instance="fake",
        at=now if at is None else at,
        started=now,
        worker_version="0",
        ready=ready,
        host=HostFacts(node=node, architecture="x86_64", kernel="6", cpu_model="none"),
        containers=tuple(Target(namespace="default", container=name) for name in containers),
        gpus=gpus,
    )


def result_of(job: Job) -> Result:
    match job.order:
        case CheckpointOrder(parts=parts, checkpoint=checkpoint, pod=pod):
            facts = CheckpointFacts(
                id=checkpoint,
                node=job.node,
                parts=tuple(PartFacts(name=one.name, target=one.target) for one in parts),
                created=time.time(),
                size=4096,
                pod=pod,
            )
            return Checkpointed(checkpoint=facts)
        case RestoreOrder(target=target, checkpoint=checkpoint):
            return Restored(target=target, pid=4711, checkpoint=checkpoint)
        case _:
            return Deleted(checkpoint=job.order.checkpoint)


class FakeWorker:
    def __init__(
        self,
        bus: Bus,
        node: str,
        *,
        seconds: float = 0.0,
        fails: Callable[[Job], Failure | None] = lambda _job: None,
        repeats: int = 1,
    ) -> None:
        """`repeats`: how often each event is published, as if confirmations got lost."""
        self._bus = bus
        self._node = node
        self._seconds = seconds
        self._fails = fails
        self._repeats = repeats
        self._terminal: dict[str, JobEvent] = {}
        self.ready = True
        """Whether its node takes jobs, as it says."""
        self._cancelled: set[str] = set()
        self.done: list[str] = []
        """Jobs that were really worked on, in order."""
        self.paused = asyncio.Event()
        """Cleared: jobs are left in the stream."""
        self.paused.set()
        self.may_seal = asyncio.Event()
        """Cleared: a pod that is to go is not durable yet."""
        self.may_seal.set()
        self.may_end = asyncio.Event()
        """Cleared: its checkpoint is durable, and its containers have not ended yet."""
        self.may_end.set()

    async def work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear_cancels())
            tasks.create_task(self._heartbeat())
            while True:
                await self.paused.wait()
                for delivery in await self._fetch():
                    tasks.create_task(self._handle(delivery))

    async def _fetch(self) -> list[Delivery]:
        try:
            return await self._bus.jobs(self._node).fetch(64, wait=0.5)
        except TopologyMissing:
            with suppress(BusProblem):
                await self._bus.ensure_topology()
                await self._bus.ensure_queue(self._node)
        except BusProblem:
            await asyncio.sleep(0.1)
        return []

    async def _heartbeat(self) -> None:
        table = self._bus.table(NODES_BUCKET, Inventory)
        while True:
            with suppress(BusProblem):
                await table.put(
                    node_key(self._node), inventory(self._node, "counter", ready=self.ready)
                )
            await asyncio.sleep(0.5)

    async def _hear_cancels(self) -> None:
        async with self._bus.listen(cancel_subject(self._node)) as told:
            async for raw in told:
                self._cancelled.add(decode(raw, Cancel).action)

    async def _handle(self, delivery: Delivery) -> None:
        job = decode(delivery.data, Job)
        with telemetry.continuing(delivery.headers), telemetry.span(telemetry.SPAN_JOB):
            while True:
                with suppress(BusProblem):
                    await self._answer(job)
                    await delivery.ack()
                    return
                await asyncio.sleep(0.1)

    async def _answer(self, job: Job) -> None:
        known = self._terminal.get(job.id)
        if known is None:
            known = await self._done(job)
            self._terminal[job.id] = known
        await self._publish(known)

    async def _done(self, job: Job) -> JobEvent:
        numbers = itertools.count()
        await self._report(job, next(numbers), EventKind.ACCEPTED)
        for step in STEPS:
            await self._report(job, next(numbers), EventKind.STEP_STARTED, step=step)
            await asyncio.sleep(self._seconds / len(STEPS))
            if job.action in self._cancelled:
                return _event(job, next(numbers), EventKind.CANCELLED)
            done, taken = EventKind.STEP_DONE, self._seconds / len(STEPS)
            await self._report(job, next(numbers), done, step=step, seconds=taken)
        if isinstance(job.order, CheckpointOrder) and job.order.ends_pod:
            await self._retire(job, next(numbers))
        self.done.append(job.id)
        if failure := self._fails(job):
            return _event(job, next(numbers), EventKind.FAILED, failure=failure)
        return _event(job, next(numbers), EventKind.COMPLETED, result=result_of(job))

    async def _retire(self, job: Job, number: int) -> None:
        await self.may_seal.wait()
        if self._fails(job) is None:
            durable = _event(job, number, EventKind.PROGRESS, step="retire", result=result_of(job))
            await self._publish(durable)
        await self.may_end.wait()

    async def _report(
        self,
        job: Job,
        sequence: int,
        kind: EventKind,
        *,
        step: str = "",
        seconds: float | None = None,
    ) -> None:
        await self._publish(_event(job, sequence, kind, step=step, seconds=seconds))

    async def _publish(self, event: JobEvent) -> None:
        subject = event_subject(event.node, event.kind)
        for _ in range(self._repeats):
            await self._bus.publish(subject, event, dedupe=str(uuid.uuid4()))


def _event(
    job: Job,
    sequence: int,
    kind: EventKind,
    *,
    step: str = "",
    seconds: float | None = None,
    failure: Failure | None = None,
    result: Result | None = None,
) -> JobEvent:
    return JobEvent(
        action=job.action,
        attempt=job.attempt,
        sequence=sequence,
        node=job.node,
        kind=kind,
        at=time.time(),
        step=step,
        seconds=seconds,
        failure=failure,
        result=result,
    )


def failure(*, retriable: bool) -> Failure:
    return Failure(
        reason=reasons.DUMP_FAILED, message="as told", advice="none", retriable=retriable
    )


@asynccontextmanager
async def working(worker: FakeWorker) -> AsyncIterator[FakeWorker]:
    """The worker at work while the block runs."""
    task = asyncio.create_task(worker.work())
    try:
        yield worker
    finally:
        await end(task)
