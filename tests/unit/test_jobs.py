"""Jobs from the queue to the told end, over the in-memory bus: accepted once, answered always."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kybernate.bus import BusSettings, BusUnavailable
from kybernate.bus.memory import MemoryBroker
from kybernate.tasks import end
from node_worker.intake import Intake
from node_worker.jobs import LIMIT, Jobs
from node_worker.ledger import Ledger
from node_worker.plan import Phase, Plan
from node_worker.reporter import LAST_SEQUENCE, JobListener, Reporter
from node_worker.settings import WorkerSettings
from schemas import reasons
from schemas.base import Message, decode
from schemas.messages import TERMINAL_EVENTS, Cancel, EventKind, Job, JobEvent
from schemas.names import EVENTS_STREAM, JOBS_STREAM, cancel_subject, job_subject
from schemas.orders import DeleteOrder, Order, RestoreOrder, Target
from tests.support.acting import CHECKPOINT, Gate, ListActor, Trouble

NODE = "node.1"
PLAN = Plan(steps=("resolve", "seal", "release"), commit="seal")


class Desk:
    """A worker's intake, jobs and reporter; and a controller's view of their events."""

    def __init__(self, folder: Path, broker: MemoryBroker) -> None:
        self.folder = folder
        self.broker = broker
        self.controller = broker.bus()
        self.settings = WorkerSettings(node=NODE, state=folder, bus=BusSettings(ack_wait=0.3))
        self.events: list[JobEvent] = []
        self.actors: dict[str, ListActor] = {}
        self.prepare: Callable[[ListActor], None] = lambda _: None
        self.jobs: Jobs
        self.ledger: Ledger

    def actor_of(self, job: Job, _: JobListener) -> Any:
        actor = self.actors.setdefault(job.id, ListActor(PLAN))
        self.prepare(actor)
        return actor

    @contextlib.asynccontextmanager
    async def worker(self, *, die: bool = False) -> AsyncIterator[None]:
        """One life of the worker; with `die` it ends without a word."""
        bus = self.broker.bus()
        self.ledger = Ledger(self.folder / "ledger.db")
        reporter = Reporter(bus, NODE, self.ledger)
        self.jobs = Jobs(self.actor_of, self.ledger, reporter)
        reporting = asyncio.create_task(reporter.run())
        await self.jobs.take_up_open()
        taking = asyncio.create_task(Intake(bus, self.settings, self.jobs).run())
        try:
            yield
        finally:
            await end(taking)
            if die:
                for task in self.jobs._tasks.values():
                    task.cancel()
            else:
                await self.jobs.close()
                await reporter.publish()
            await end(reporting)
            self.ledger.close()

    async def order(self, order: Order | None = None, **changes: Any) -> Job:
        """Publish a new job."""
        fields: dict[str, Any] = {
            "action": str(uuid.uuid4()),
            "attempt": 1,
            "node": NODE,
            "order": order or DeleteOrder(checkpoint=str(uuid.uuid4())),
            "deadline": time.time() + 60,
        }
        job = Job(**(fields | changes))
        await self.publish(job)
        return job

    async def publish(self, job: Message, dedupe: str | None = None) -> None:
        subject = job_subject(NODE, "delete")
        await self.controller.publish(subject, job, dedupe=dedupe or str(uuid.uuid4()))

    async def ended(self, job: Job, *, times: int = 1) -> JobEvent:
        """Its last event, once it has arrived so often."""
        queue = self.controller.events()
        async with asyncio.timeout(30):
            while len(found := self.ends(job)) < times:
                for delivery in await queue.fetch(100, wait=0.2):
                    self.events += decode(delivery.data, JobEvent).one_by_one()
                    with contextlib.suppress(BusUnavailable):  # then it comes again
                        await delivery.ack()
        return found[-1]

    def ends(self, job: Job) -> list[JobEvent]:
        return [one for one in self.of(job) if one.kind in TERMINAL_EVENTS]

    def of(self, job: Job) -> list[JobEvent]:
        return [e for e in self.events if (e.action, e.attempt) == (job.action, job.attempt)]

    async def queue_is_empty(self) -> None:
        """Wait until every job is acknowledged."""
        await until(lambda: not self.broker.streams[JOBS_STREAM].messages)


async def until(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not wanted():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    broker = MemoryBroker(ack_wait=0.3)
    desk = Desk(tmp_path, broker)
    await desk.controller.ensure_topology()
    await desk.controller.ensure_queue(NODE)
    return desk


async def test_a_job_from_queue_to_told_end(desk: Desk) -> None:
    async with desk.worker():
        job = await desk.order()
        last = await desk.ended(job)
        await desk.queue_is_empty()
    assert last.kind is EventKind.COMPLETED
    assert last.sequence == LAST_SEQUENCE
    assert desk.actors[job.id].effects == list(PLAN.steps)
    told = [event.step for event in desk.of(job) if event.kind is EventKind.STEP_DONE]
    assert told == list(PLAN.steps)
    sequences = [event.sequence for event in desk.of(job)]
    assert sequences == sorted(set(sequences))


async def test_many_jobs_at_once(desk: Desk) -> None:
    async with desk.worker():
        jobs = [await desk.order() for _ in range(200)]
        for job in jobs:
            assert (await desk.ended(job)).kind is EventKind.COMPLETED
        await desk.queue_is_empty()


async def test_a_failure_is_told(desk: Desk) -> None:
    def trouble(act: str) -> None:
        if act == "do seal":
            raise Trouble("no room")

    desk.prepare = lambda actor: setattr(actor, "before", trouble)
    async with desk.worker():
        job = await desk.order()
        last = await desk.ended(job)
    assert last.kind is EventKind.FAILED
    assert last.failure is not None
    assert (last.failure.step, last.failure.reason) == ("seal", reasons.INTERNAL)
    assert desk.actors[job.id].effects == []


async def test_the_same_job_twice_is_done_once_and_answered_twice(desk: Desk) -> None:
    async with desk.worker():
        job = await desk.order()
        first = await desk.ended(job)
        desk.broker.wipe(EVENTS_STREAM)  # else the server drops the repeated event
        await desk.controller.ensure_topology()
        await desk.publish(job)
        assert await desk.ended(job, times=2) == first
        await desk.queue_is_empty()
    assert desk.actors[job.id].effects == list(PLAN.steps)


async def test_the_same_job_twice_while_it_runs(desk: Desk) -> None:
    gate = Gate()
    desk.prepare = lambda actor: actor.gates.update(resolve=gate)
    async with desk.worker():
        job = await desk.order()
        await gate.reached.wait()
        await desk.publish(job)
        await asyncio.sleep(0.5)  # longer than an unkept delivery is waited for
        gate.open.set()
        await desk.ended(job)
        await desk.queue_is_empty()
        assert desk.ledger.take_up(job.id) == 2, "it was taken up once before"


async def test_an_earlier_attempt_is_not_done(desk: Desk) -> None:
    async with desk.worker():
        job = await desk.order(attempt=2)
        await desk.ended(job)
        stale = await desk.order(action=job.action, attempt=1)
        await desk.queue_is_empty()
    assert stale.id not in desk.actors


@pytest.mark.parametrize(
    "raw",
    [
        b"not json",
        b"{}",
        b'{"version":99,"action":"a"}',
        b'{"version":1,"action":"a","attempt":1,"node":"x","order":{"verb":"dance"}}',
        b"\xff\xfe",
    ],
)
async def test_what_is_no_job_is_dropped(desk: Desk, raw: bytes) -> None:
    async with desk.worker():
        stream = desk.broker.streams[JOBS_STREAM]
        stream.add(job_subject(NODE, "delete"), raw, {}, "x")
        await desk.queue_is_empty()
        job = await desk.order()
        assert (await desk.ended(job)).kind is EventKind.COMPLETED


async def test_a_job_for_another_node_is_dropped(desk: Desk) -> None:
    async with desk.worker():
        job = await desk.order(node="elsewhere")
        await desk.queue_is_empty()
    assert job.id not in desk.actors


async def test_cancelled_before_the_commit(desk: Desk) -> None:
    gate = Gate()
    desk.prepare = lambda actor: actor.gates.update(resolve=gate)
    async with desk.worker():
        job = await desk.order()
        await gate.reached.wait()
        await desk.controller.tell(cancel_subject(NODE), Cancel(action=job.action))
        last = await desk.ended(job)
    assert last.kind is EventKind.CANCELLED
    assert desk.actors[job.id].effects == []


async def test_cancelled_too_late(desk: Desk) -> None:
    gate = Gate()
    desk.prepare = lambda actor: actor.gates.update(release=gate)
    async with desk.worker():
        job = await desk.order()
        await gate.reached.wait()
        await desk.controller.tell(cancel_subject(NODE), Cancel(action=job.action))
        await asyncio.sleep(0.05)
        gate.open.set()
        assert (await desk.ended(job)).kind is EventKind.COMPLETED


async def test_what_waits_for_its_turn_can_be_called_off(desk: Desk) -> None:
    gates = [Gate() for _ in range(LIMIT)]
    free = iter(gates)

    def stand(actor: ListActor) -> None:
        if gate := next(free, None):
            actor.gates["resolve"] = gate

    desk.prepare = stand
    async with desk.worker():
        first = [await desk.order() for _ in gates]
        for gate in gates:
            await gate.reached.wait()
        waiting, late = await desk.order(), await desk.order(deadline=time.time() + 0.3)
        await until(lambda: {waiting.action, late.action} <= set(desk.jobs.running))
        await desk.controller.tell(cancel_subject(NODE), Cancel(action=waiting.action))
        assert (await desk.ended(waiting)).kind is EventKind.CANCELLED
        last = await desk.ended(late)
        for gate in gates:
            gate.open.set()
        for job in first:
            assert (await desk.ended(job)).kind is EventKind.COMPLETED
        assert (await desk.ended(await desk.order())).kind is EventKind.COMPLETED
    assert last.failure is not None
    assert last.failure.reason == reasons.DEADLINE_EXCEEDED
    assert desk.actors[waiting.id].effects == []


@pytest.mark.parametrize("seconds", [-5.0, 0.2])
async def test_a_deadline_that_passes(desk: Desk, seconds: float) -> None:
    desk.prepare = lambda actor: actor.gates.update(resolve=Gate())
    async with desk.worker():
        job = await desk.order(deadline=time.time() + seconds)
        last = await desk.ended(job)
    assert last.failure is not None
    assert last.failure.reason == reasons.DEADLINE_EXCEEDED
    assert desk.actors[job.id].effects == []


async def test_two_at_once_on_one_container(desk: Desk) -> None:
    gate = Gate()
    desk.prepare = lambda actor: actor.gates.update(resolve=gate)
    same = Target(namespace="default", container="c1")
    async with desk.worker():
        job = await desk.order(
            RestoreOrder(checkpoint=CHECKPOINT, part=same.container, target=same)
        )
        await gate.reached.wait()
        other = await desk.order(
            RestoreOrder(checkpoint=CHECKPOINT, part=same.container, target=same)
        )
        deleting = await desk.order(DeleteOrder(checkpoint=CHECKPOINT))
        refused, in_use = await desk.ended(other), await desk.ended(deleting)
        gate.open.set()
        assert (await desk.ended(job)).kind is EventKind.COMPLETED
        later = await desk.order(DeleteOrder(checkpoint=CHECKPOINT))
        assert (await desk.ended(later)).kind is EventKind.COMPLETED
    assert refused.failure is not None
    assert refused.failure.reason == reasons.CONTAINER_BUSY
    assert not refused.failure.retriable
    assert in_use.failure is not None
    assert in_use.failure.reason == reasons.CHECKPOINT_IN_USE


async def test_a_graceful_stop_undoes_and_tells(desk: Desk) -> None:
    gate = Gate()
    desk.prepare = lambda actor: actor.gates.update(resolve=gate)
    async with desk.worker():
        job = await desk.order()
        await gate.reached.wait()
    last = await desk.ended(job)
    assert last.failure is not None
    assert (last.failure.reason, last.failure.retriable) == (reasons.WORKER_RESTARTED, True)
    assert desk.actors[job.id].effects == []


async def test_what_was_begun_before_is_undone_and_told(desk: Desk) -> None:
    job = await desk.order()
    desk.actors[job.id] = ListActor(PLAN, ["resolve"])
    ledger = Ledger(desk.folder / "ledger.db")
    ledger.accept([(job, "")], time.time())
    ledger.step(job.id, "resolve", Phase.DONE)
    ledger.close()
    async with desk.worker():
        last = await desk.ended(job)
        await desk.queue_is_empty()
    assert last.failure is not None
    assert last.failure.reason == reasons.WORKER_RESTARTED
    assert desk.actors[job.id].effects == []


async def test_what_was_committed_before_is_finished_and_told(desk: Desk) -> None:
    job = await desk.order()
    desk.actors[job.id] = ListActor(PLAN, ["resolve", "seal"])
    ledger = Ledger(desk.folder / "ledger.db")
    ledger.accept([(job, "")], time.time())
    ledger.step(job.id, "resolve", Phase.DONE)
    ledger.step(job.id, "seal", Phase.DOING)
    ledger.close()
    async with desk.worker():
        assert (await desk.ended(job)).kind is EventKind.COMPLETED
        await desk.queue_is_empty()
    assert desk.actors[job.id].effects == list(PLAN.steps)


async def test_what_was_only_accepted_before_is_done(desk: Desk) -> None:
    job = await desk.order()
    ledger = Ledger(desk.folder / "ledger.db")
    ledger.accept([(job, "")], time.time())
    ledger.close()
    async with desk.worker():
        assert (await desk.ended(job)).kind is EventKind.COMPLETED


async def test_the_server_is_away_when_the_job_ends(desk: Desk) -> None:
    gate = Gate()
    desk.prepare = lambda actor: actor.gates.update(release=gate)
    async with desk.worker():
        job = await desk.order()
        await gate.reached.wait()
        desk.broker.disconnect()
        gate.open.set()
        await until(lambda: desk.ledger.ended(job.id))
        desk.broker.reconnect()
        assert (await desk.ended(job)).kind is EventKind.COMPLETED
        await desk.queue_is_empty()
    assert desk.actors[job.id].effects == list(PLAN.steps)


async def test_streams_that_were_wiped_come_back(desk: Desk) -> None:
    async with desk.worker():
        await desk.ended(await desk.order())
        desk.broker.wipe(JOBS_STREAM)
        desk.broker.wipe(EVENTS_STREAM)
        await until(lambda: JOBS_STREAM in desk.broker.streams)
        job = await desk.order()
        assert (await desk.ended(job)).kind is EventKind.COMPLETED


async def test_duplicates_and_lost_confirmations(desk: Desk) -> None:
    async with desk.worker():
        desk.broker.duplicate(5)
        jobs = [await desk.order() for _ in range(5)]
        desk.broker.lose_acks(2)
        for job in jobs:
            assert (await desk.ended(job)).kind is EventKind.COMPLETED
        await desk.queue_is_empty()
    assert all(desk.actors[job.id].effects == list(PLAN.steps) for job in jobs)


async def test_the_end_is_told_after_a_death_between_end_and_telling(desk: Desk) -> None:
    gate = Gate()
    desk.prepare = lambda actor: actor.gates.update(release=gate)
    async with desk.worker(die=True):
        job = await desk.order()
        await gate.reached.wait()
        desk.broker.disconnect()
        gate.open.set()
        await until(lambda: desk.ledger.ended(job.id))
    desk.broker.reconnect()
    async with desk.worker():
        assert (await desk.ended(job)).kind is EventKind.COMPLETED
        await desk.queue_is_empty()


async def test_what_could_not_be_undone_is_undone_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_worker.executor.TRIES", 2)
    stuck = True

    def trouble(act: str) -> None:
        if act == "do seal" or (act == "undo resolve" and stuck):
            raise Trouble("stuck")

    desk.prepare = lambda actor: setattr(actor, "before", trouble)
    async with desk.worker():
        job = await desk.order()
        last = await desk.ended(job)
        assert last.failure is not None
        assert last.failure.reason == reasons.UNDO_FAILED
        assert desk.actors[job.id].effects == ["resolve"]
        stuck = False
        await desk.jobs.take_up_open()
        assert desk.actors[job.id].effects == []
        assert desk.ledger.unsettled() == []
    assert len(desk.ends(job)) == 1
