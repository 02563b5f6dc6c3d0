"""A real node whose workers die: NATS, containerd, a container that counts, what tests ask."""

import asyncio
import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from kybernate.bus import Bus, BusSettings, BusUnavailable
from kybernate.bus.nats import connect as connect_bus
from kybernate.embedded.containerd import PrivateContainerd, private_containerd
from kybernate.embedded.nats_server import nats_server
from kybernate.embedded.oci import Workload
from kybernate.embedded.stack import find_stack
from kybernate.embedded.workload import NAMESPACE, Running, Workloads, end_task
from kybernate.store import CheckpointStore, read_manifest, verify
from node_worker.containerd.client import Containerd, connect
from node_worker.containerd.port import NotFound, TaskStatus
from node_worker.settings import WorkerSettings
from schemas.base import decode
from schemas.messages import TERMINAL_EVENTS, EventKind, Job, JobEvent
from schemas.names import job_subject
from schemas.orders import CheckpointOrder, Order, Target, only_part, verb
from tests.support.crashing_worker import CrashingWorkers, Fate, crashing_workers
from tests.support.gpu_kinds import Gpus

NODE = "crashing"
CONTAINER, BESIDE = "counter", "beside"
COUNTER = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done"
COUNTING = Workload(args=("sh", "-c", COUNTER))
TARGET = Target(namespace=NAMESPACE, container=CONTAINER)
END_SECONDS = 90.0
DAEMON_CHARACTERS = 8000


class House:
    """What stands, and what a case does with it."""

    def __init__(  # noqa: PLR0917 - one place makes it
        self,
        settings: WorkerSettings,
        daemon: PrivateContainerd,
        runtime: Containerd,
        workloads: Workloads,
        bus: Bus,
        workers: CrashingWorkers,
    ) -> None:
        self.settings = settings
        self.daemon = daemon
        self.runtime = runtime
        self.workloads = workloads
        self.bus = bus
        self.workers = workers
        self.store = CheckpointStore(settings.store)
        self.counters: dict[str, Running] = {}
        self.checkpoint = ""
        """The last durable one of the container that is not deleted."""

    async def publish(self, order: Order) -> Job:
        job = Job(
            action=str(uuid.uuid4()), attempt=1, node=NODE, order=order, deadline=time.time() + 60
        )
        async with asyncio.timeout(END_SECONDS):
            while not await self._has_published(job):
                pass
        return job

    async def _has_published(self, job: Job) -> bool:
        with contextlib.suppress(BusUnavailable):  # a starved machine's NATS does not answer in 5 s
            await self.bus.publish(job_subject(NODE, verb(job.order)), job, dedupe=job.id)
            return True
        return False

    async def dies(self, order: Order, fate: Fate) -> JobEvent:
        """The worker dies as it is told while it does the order; what the next one reports."""
        return await self.ended_by_the_next(await self.dead(order, fate))

    async def dead(self, order: Order, fate: Fate) -> Job:
        """The order's job, in which the worker has died as it was told; no other runs yet."""
        await self.workers.start(fate)
        job = await self.publish(order)
        await self.workers.killed()
        return job

    async def done(self, *orders: Order) -> JobEvent:
        """The orders done by a worker that does not die; how the last of them ended."""
        return await self.ended_by_the_next(*[await self.publish(order) for order in orders])

    async def ended_by_the_next(self, *jobs: Job) -> JobEvent:
        await self.workers.start(Fate())
        event = await self.last_event(*jobs)
        await self.workers.stop()
        return event

    async def last_event(self, *jobs: Job) -> JobEvent:
        """How the last of the jobs to end has ended; all before it completed."""
        left = {job.action for job in jobs}
        try:
            async with asyncio.timeout(END_SECONDS):
                return await self._last_of(left)
        except TimeoutError:
            stands = await self.workers.where_it_stands()
            daemon = self.daemon.log.read_text(errors="replace")[-DAEMON_CHARACTERS:]
            raise AssertionError(f"no end of {left}:\n{stands}\n{daemon}") from None

    async def _last_of(self, left: set[str]) -> JobEvent:
        while True:
            for event in await self._events():
                if event.action in left and event.kind in TERMINAL_EVENTS:
                    left.discard(event.action)
                    if not left:
                        return event
                    assert event.kind is EventKind.COMPLETED, event.failure

    async def _events(self) -> list[JobEvent]:
        """Those of a moment; what was not acknowledged comes again."""
        events: list[JobEvent] = []
        with contextlib.suppress(BusUnavailable):  # a starved machine's NATS does not answer in 5 s
            for delivery in await self.bus.events().fetch(100, wait=1.0):
                events.append(decode(delivery.data, JobEvent))
                await delivery.ack()
        return events

    # the container

    async def running(self, name: str = CONTAINER) -> Running:
        """The container, which counts."""
        if name not in self.counters or await self.status(name) is not TaskStatus.RUNNING:
            if name in self.counters:
                await self.counters[name].remove()
            self.counters[name] = await self.workloads.start_container(name, COUNTING)
        await self.counters[name].wait_for_more()
        return self.counters[name]

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

    async def ended_by_kubelet(self) -> None:
        """As it ends the containers of a pod that is being deleted."""
        await end_task(self.runtime, CONTAINER)

    async def status(self, name: str = CONTAINER) -> TaskStatus | None:
        try:
            return (await self.runtime.task(NAMESPACE, name)).status
        except NotFound:
            return None

    async def counts_on(self, name: str = CONTAINER) -> None:
        assert await self.status(name) is TaskStatus.RUNNING
        lines = await self.counters[name].wait_for_more(2)
        numbers = [int(line) for line in lines[-3:]]
        assert numbers == list(range(numbers[0], numbers[0] + 3))

    def nothing_lies_around(self) -> None:
        work = self.settings.state / "work"
        assert self.store.leftovers() == ()
        assert list(work.glob("*")) == []

    def is_durable(self, checkpoint: str) -> bool:
        if checkpoint not in self.store.checkpoints():
            return False
        folder = self.store.folder(checkpoint)
        verify(folder, read_manifest(folder))
        return True


def checkpoint_order(*, leave_running: bool) -> CheckpointOrder:
    return CheckpointOrder(
        parts=only_part(TARGET), checkpoint=str(uuid.uuid4()), leave_running=leave_running
    )


@asynccontextmanager
async def crash_house(gpus: Gpus | None = None) -> AsyncIterator[House]:
    """With these GPUs, or with none."""
    folder = Path(tempfile.mkdtemp(prefix="ky-", dir="/tmp"))
    settings = WorkerSettings(node=NODE, state=folder / "worker")
    gpus = gpus or Gpus(driver="", argument="")
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        nats = await stack.enter_async_context(nats_server(folder / "nats"))
        daemon = await stack.enter_async_context(
            private_containerd(find_stack(), folder / "containerd")
        )
        runtime = await stack.enter_async_context(connect(daemon.socket))
        link = BusSettings(servers=(nats.url,), ack_wait=5.0)
        bus = await stack.enter_async_context(connect_bus(link, name="test"))
        await bus.ensure_topology()
        await bus.ensure_queue(NODE)
        workers = await stack.enter_async_context(
            crashing_workers(
                (NODE, settings.state, daemon.socket, nats.url, gpus.driver, gpus.argument),
                folder / "worker.log",
            )
        )
        workloads = Workloads(daemon, runtime)
        stack.push_async_callback(workloads.clear)
        yield House(settings, daemon, runtime, workloads, bus, workers)
