"""Kybernate's side: its controller's engine and its worker's intake, with a plan that does nothing.

Everything is production's except the actor; only the REST API, containerd and the heartbeat of
the node are left out, as the other side has none.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import msgspec

from bench.jobs_side import NODE, Side
from controller.catalogue import Catalogue
from controller.engine import Engine
from controller.events import Events
from controller.nodes import Nodes
from controller.records import Records
from controller.sweep import Sweep
from kybernate import tasks
from kybernate.bus import Bus, BusSettings
from kybernate.bus.nats import connect
from node_worker.intake import Intake
from node_worker.jobs import Jobs
from node_worker.ledger import Ledger
from node_worker.plan import Plan
from node_worker.reporter import JobListener, Reporter
from node_worker.settings import WorkerSettings
from schemas.actions import Action
from schemas.messages import Job, Restored
from schemas.orders import RestoreOrder

PATIENCE_SECONDS = 60.0


class NoNotes(msgspec.Struct, frozen=True):
    """Nothing is found out."""


class Nothing:
    """A plan of one step, which does nothing."""

    plan = Plan(steps=("nothing",), commit="nothing")
    notes = NoNotes
    interruptible: frozenset[str] = frozenset()

    def __init__(self, order: RestoreOrder) -> None:
        self._order = order

    async def do(self, _step: str, notes: NoNotes) -> NoNotes:
        return notes

    async def undo(self, _step: str, _notes: NoNotes) -> None:
        return

    async def landed(self, _notes: NoNotes) -> bool:
        return True

    async def result(self, _notes: NoNotes) -> Restored:
        return Restored(target=self._order.target, pid=1, checkpoint=self._order.checkpoint)


def nothing_for(job: Job, _listener: JobListener) -> Nothing:
    if not isinstance(job.order, RestoreOrder):
        raise TypeError(f"this comparison has restore orders only, not {job.order}")
    return Nothing(job.order)


class KybernateSide:
    def __init__(self, engine: Engine, records: Records) -> None:
        self._engine = engine
        self._records = records

    async def complete(self, action: Action) -> None:
        with self._records.watchers.watch(action.id) as watch:
            await self._engine.start(action)
            while (seen := await watch.next(PATIENCE_SECONDS)) is None or not seen.ended:
                pass


@asynccontextmanager
async def through_kybernate(url: str, folder: Path) -> AsyncIterator[Side]:
    settings = BusSettings(servers=(url,))
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        bus = await enter(connect(settings, name="kybernate-controller"))
        link = await enter(connect(settings, name=f"kybernate-worker-{NODE}"))
        await bus.ensure_topology()
        await link.ensure_queue(NODE)
        side = await enter(_controller(bus))
        await enter(_worker(link, folder))
        yield side


@asynccontextmanager
async def _controller(bus: Bus) -> AsyncIterator[Side]:
    records, catalogue = Records(bus), Catalogue(bus)
    engine = Engine(bus, records, catalogue)
    async with AsyncExitStack() as stack:
        for work in (
            Events(bus, engine).run(),
            Sweep(bus, engine, records, catalogue, Nodes(bus)).run(),
        ):
            stack.push_async_callback(tasks.end, asyncio.create_task(work))
        yield KybernateSide(engine, records)


@asynccontextmanager
async def _worker(bus: Bus, folder: Path) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        settings = WorkerSettings(node=NODE, state=folder)
        ledger = stack.enter_context(closing(Ledger(settings.ledger)))
        reporter = Reporter(bus, NODE, ledger)
        jobs = Jobs(nothing_for, ledger, reporter)
        for work in (reporter.run(), Intake(bus, settings, jobs).run()):
            stack.push_async_callback(tasks.end, asyncio.create_task(work))
        yield
