"""A real worker on a real containerd, killed (SIGKILL) around every act of every step and around
its record, on the way there and on the way back. The next worker finds what it left: afterwards
the container runs on as before, or its checkpoint is durable and it is ended.

One containerd, one NATS and one container serve the whole table; every case restores what it
needs, so that any of them can run alone.
"""

import asyncio
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from kybernate.bus import Bus, BusSettings
from kybernate.bus.nats import connect as connect_bus
from kybernate.embedded.containerd import private_containerd
from kybernate.embedded.nats_server import nats_server
from kybernate.embedded.oci import Workload
from kybernate.embedded.stack import find_stack
from kybernate.embedded.workload import NAMESPACE, SNAPSHOTTER, Running, Workloads, end_task
from kybernate.store import CheckpointStore, read_manifest, verify
from node_worker.containerd.client import Containerd, connect
from node_worker.containerd.port import NotFound, TaskStatus
from node_worker.executor import Point
from node_worker.settings import WorkerSettings
from schemas import reasons
from schemas.base import decode
from schemas.messages import TERMINAL_EVENTS, EventKind, Job, JobEvent
from schemas.names import job_subject
from schemas.orders import CheckpointOrder, DeleteOrder, Order, RestoreOrder, Target, verb
from tests.support.crashing_worker import CrashingWorkers, Fate, crashing_workers

NODE = "crashing"
CONTAINER = "counter"
COUNTER = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done"
TARGET = Target(namespace=NAMESPACE, container=CONTAINER)
KILLED = -9

DO_POINTS = (Point.BEFORE_DO, Point.DONE, Point.DONE_RECORDED)
UNDO_POINTS = (Point.BEFORE_UNDO, Point.UNDONE, Point.UNDONE_RECORDED)
CHECKPOINT = (
    *("resolve", "preflight", "stage", "lock", "gpu", "pause"),
    *("dump", "rootfs", "hash", "seal", "release"),
)
RESTORE = (
    *("resolve", "fit", "snapshot", "container", "create"),
    *("verify", "start", "gpu", "settle"),
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


class House:
    """What stands, and what a case does with it."""

    def __init__(
        self, runtime: Containerd, workloads: Workloads, bus: Bus, workers: CrashingWorkers
    ) -> None:
        self.runtime = runtime
        self.workloads = workloads
        self.bus = bus
        self.workers = workers
        self.store: CheckpointStore
        self.state: Path
        self.counter: Running | None = None
        self.checkpoint = ""
        """The last durable one of the container that is not deleted."""

    async def dies(self, order: Order, fate: Fate) -> JobEvent:
        """The worker dies as it is told while it does the order; what the next one reports."""
        job = Job(
            action=str(uuid.uuid4()), attempt=1, node=NODE, order=order, deadline=time.time() + 60
        )
        await self.workers.start(fate)
        await self.bus.publish(job_subject(NODE, verb(order)), job, dedupe=job.id)
        assert await self.workers.ended() == KILLED
        return await self._ended_by_the_next(job)

    async def done(self, order: Order) -> JobEvent:
        """The order done by a worker that does not die."""
        job = Job(
            action=str(uuid.uuid4()), attempt=1, node=NODE, order=order, deadline=time.time() + 60
        )
        await self.bus.publish(job_subject(NODE, verb(order)), job, dedupe=job.id)
        return await self._ended_by_the_next(job)

    async def _ended_by_the_next(self, job: Job) -> JobEvent:
        await self.workers.start(Fate())
        event = await self._last_event(job)
        await self.workers.stop()
        return event

    async def _last_event(self, job: Job) -> JobEvent:
        queue = self.bus.events()
        async with asyncio.timeout(60):
            while True:
                for delivery in await queue.fetch(100, wait=1.0):
                    await delivery.ack()
                    event = decode(delivery.data, JobEvent)
                    if event.action == job.action and event.kind in TERMINAL_EVENTS:
                        return event

    # the container

    async def running(self) -> Running:
        """The container, which counts."""
        if self.counter is None or await self.status() is not TaskStatus.RUNNING:
            if self.counter is not None:
                await self.counter.remove()
            workload = Workload(args=("sh", "-c", COUNTER))
            self.counter = await self.workloads.start_container(CONTAINER, workload)
        await self.counter.wait_for_more()
        return self.counter

    async def stopped(self) -> str:
        """A checkpoint of the container, which is ended; its record and snapshot are there."""
        if not self.checkpoint:
            await self.running()
            order = checkpoint_order(leave_running=False)
            event = await self.done(order)
            assert event.kind is EventKind.COMPLETED, event.failure
            self.checkpoint = order.checkpoint
        await end_task(self.runtime, CONTAINER)
        return self.checkpoint

    async def status(self) -> TaskStatus | None:
        try:
            return (await self.runtime.task(NAMESPACE, CONTAINER)).status
        except NotFound:
            return None

    async def counts_on(self) -> None:
        assert self.counter is not None
        assert await self.status() is TaskStatus.RUNNING
        lines = await self.counter.wait_for_more(2)
        numbers = [int(line) for line in lines[-3:]]
        assert numbers == list(range(numbers[0], numbers[0] + 3))

    def nothing_lies_around(self) -> None:
        work = self.state / "work"
        assert self.store.leftovers() == ()
        assert list(work.glob("*")) == []

    def is_durable(self, checkpoint: str) -> bool:
        if checkpoint not in self.store.checkpoints():
            return False
        folder = self.store.folder(checkpoint)
        verify(folder, read_manifest(folder))
        return True


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house() -> AsyncIterator[House]:
    folder = Path(tempfile.mkdtemp(prefix="ky-", dir="/tmp"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        nats = await stack.enter_async_context(nats_server(folder / "nats"))
        daemon = await stack.enter_async_context(
            private_containerd(find_stack(), folder / "containerd")
        )
        runtime = await stack.enter_async_context(connect(daemon.socket))
        settings = BusSettings(servers=(nats.url,), ack_wait=5.0)
        bus = await stack.enter_async_context(connect_bus(settings, name="test"))
        await bus.ensure_topology()
        await bus.ensure_queue(NODE)
        state = folder / "worker"
        workers = await stack.enter_async_context(
            crashing_workers(NODE, state, daemon.socket, nats.url, folder / "worker.log")
        )
        workloads = Workloads(daemon, runtime)
        stack.push_async_callback(workloads.clear)
        house = House(runtime, workloads, bus, workers)
        house.state = state
        house.store = CheckpointStore(WorkerSettings(node=NODE, state=state).store)
        yield house


def checkpoint_order(*, leave_running: bool) -> CheckpointOrder:
    return CheckpointOrder(target=TARGET, checkpoint=str(uuid.uuid4()), leave_running=leave_running)


@pytest.mark.parametrize("point", DO_POINTS)
@pytest.mark.parametrize("step", CHECKPOINT)
@pytest.mark.parametrize("leave_running", [True, False])
async def test_checkpoint(
    house: House,
    step: str,
    point: Point,
    leave_running: bool,  # noqa: FBT001
) -> None:
    await house.running()
    order = checkpoint_order(leave_running=leave_running)
    event = await house.dies(order, Fate(dies=(step, point)))
    committed = step == "release" or (step == "seal" and point is not Point.BEFORE_DO)
    assert house.is_durable(order.checkpoint) == committed
    house.nothing_lies_around()
    if committed:
        assert event.kind is EventKind.COMPLETED
    else:
        assert event.failure is not None
        assert event.failure.reason == reasons.WORKER_RESTARTED
    if committed and not leave_running:
        assert await house.status() is None
    else:
        await house.counts_on()


@pytest.mark.parametrize("point", UNDO_POINTS)
@pytest.mark.parametrize("step", CHECKPOINT[:-1])
async def test_the_way_back_of_a_checkpoint(house: House, step: str, point: Point) -> None:
    await house.running()
    order = checkpoint_order(leave_running=False)
    fate = Fate(fails=("seal", Point.BEFORE_DO), dies=(step, point))
    event = await house.dies(order, fate)
    assert event.kind is EventKind.FAILED
    assert not house.is_durable(order.checkpoint)
    house.nothing_lies_around()
    await house.counts_on()


@pytest.mark.parametrize("point", DO_POINTS)
@pytest.mark.parametrize("step", RESTORE)
async def test_restore(house: House, step: str, point: Point) -> None:
    checkpoint = await house.stopped()
    before = await house.runtime.container(NAMESPACE, CONTAINER)
    event = await house.dies(
        RestoreOrder(checkpoint=checkpoint, target=TARGET), Fate(dies=(step, point))
    )
    house.nothing_lies_around()
    if step in {"gpu", "settle"}:  # without a GPU, nothing was missing when the step began
        assert event.kind is EventKind.COMPLETED
        await house.counts_on()
    else:
        await assert_as_before(house, event, before)


@pytest.mark.parametrize("point", UNDO_POINTS)
@pytest.mark.parametrize("step", RESTORE[:-2])
async def test_the_way_back_of_a_restore(house: House, step: str, point: Point) -> None:
    checkpoint = await house.stopped()
    before = await house.runtime.container(NAMESPACE, CONTAINER)
    event = await house.dies(
        RestoreOrder(checkpoint=checkpoint, target=TARGET),
        Fate(fails=("start", Point.DONE), dies=(step, point)),
    )
    house.nothing_lies_around()
    await assert_as_before(house, event, before)


async def assert_as_before(house: House, event: JobEvent, before: object) -> None:
    assert event.kind is EventKind.FAILED
    assert await house.status() is None
    container = await house.runtime.container(NAMESPACE, CONTAINER)
    assert container == before
    await house.runtime.snapshot(NAMESPACE, SNAPSHOTTER, container.snapshot_key)
    assert house.is_durable(house.checkpoint)


@pytest.mark.parametrize("point", DO_POINTS)
async def test_delete(house: House, point: Point) -> None:
    await house.running()
    order = checkpoint_order(leave_running=True)
    assert (await house.done(order)).kind is EventKind.COMPLETED
    event = await house.dies(DeleteOrder(checkpoint=order.checkpoint), Fate(dies=("delete", point)))
    there = point is Point.BEFORE_DO
    assert house.is_durable(order.checkpoint) == there
    assert event.kind is (EventKind.FAILED if there else EventKind.COMPLETED)
    house.nothing_lies_around()
