"""The engine, the events and the sweep over the in-memory bus, where bad luck comes on demand."""

import asyncio
import gc
import uuid
from collections.abc import Callable

import msgspec
import pytest

from controller.catalogue import Catalogue
from controller.engine import Engine
from controller.events import Events
from controller.machine import NotAllowed, Rules
from controller.records import ENDED_STORED_SECONDS, Records
from kybernate.bus.memory import MemoryBroker
from kybernate.bus.port import Bus, BusProblem, Conflict
from schemas import reasons
from schemas.actions import Action, ActionState
from schemas.base import decode
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.manifest import CheckpointFacts
from schemas.messages import Cancel, Checkpointed, EventKind, Job, JobEvent
from schemas.names import (
    ACTIONS_BUCKET,
    CHECKPOINTS_BUCKET,
    EVENTS_STREAM,
    JOBS_STREAM,
    cancel_subject,
    event_subject,
)
from schemas.orders import CheckpointOrder, Target, only_part
from tests.support.checkpoints import parts_of
from tests.support.controllers import until

NODE = "n1"
CHECKPOINT = "11111111-2222-3333-4444-555555555555"
TARGET = Target(namespace="default", container="counter")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Controller:
    """One controller without its loops: the test decides what happens when."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self.bus = bus
        self.records = Records(bus, clock=clock)
        self.catalogue = Catalogue(bus, clock=clock)
        self.engine = Engine(bus, self.records, self.catalogue, clock=clock)
        self.events = Events(bus, self.engine)

    async def sweep(self) -> None:
        await self.bus.ensure_topology()
        await self.records.reread()
        await self.catalogue.heal()
        await self.engine.do_what_is_due()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def broker() -> MemoryBroker:
    broker = MemoryBroker(ack_wait=0.5)
    await broker.bus().ensure_topology()
    await broker.bus().ensure_queue(NODE)
    return broker


@pytest.fixture
def new(broker: MemoryBroker, clock: Clock) -> Callable[[], Controller]:
    return lambda: Controller(broker.bus(), clock)


@pytest.fixture
def one(new: Callable[[], Controller]) -> Controller:
    return new()


def action(clock: Clock, **changes: object) -> Action:
    name = str(uuid.uuid4())
    plain = Action(
        id=name,
        kind="checkpoint",
        node=NODE,
        order=CheckpointOrder(parts=only_part(TARGET), checkpoint=name),
        state=ActionState.PENDING,
        created=clock.now,
        updated=clock.now,
        deadline=clock.now + 600,
    )
    return msgspec.structs.replace(plain, **changes)


def event(of: Action, kind: EventKind, sequence: int = 0, attempt: int = 1) -> JobEvent:
    facts = CheckpointFacts(
        id=of.order.checkpoint, node=NODE, parts=parts_of(TARGET), created=1.0, size=1
    )
    return JobEvent(
        action=of.id,
        attempt=attempt,
        sequence=sequence,
        node=NODE,
        kind=kind,
        at=1.0,
        result=Checkpointed(checkpoint=facts) if kind is EventKind.COMPLETED else None,
    )


async def report(bus: Bus, *events: JobEvent) -> None:
    for one in events:
        dedupe = f"{one.action}.{one.attempt}.{one.sequence}"
        await bus.publish(event_subject(NODE, one.kind), one, dedupe=dedupe)


async def jobs_in_stream(bus: Bus, *, wait: float = 0.3) -> list[str]:
    deliveries = await bus.jobs(NODE).fetch(100, wait=wait)
    await asyncio.gather(*(delivery.ack() for delivery in deliveries))
    return [decode(delivery.data, Job).id for delivery in deliveries]


async def state_of(broker: MemoryBroker, action: str) -> ActionState | None:
    row = await broker.bus().table(ACTIONS_BUCKET, Action).get(action)
    return row.value.state if row else None


async def dispatched(controller: Controller, clock: Clock, action: Action) -> None:
    """Its job lies in the stream, and that is noted."""

    async def noted() -> Action:
        clock.now += 0.5
        await controller.engine.do_what_is_due()
        row = await controller.records.read(action.id)
        assert row is not None
        return row.value

    await until(noted, lambda one: one.state is ActionState.DISPATCHED)


async def entry_of(broker: MemoryBroker, checkpoint: str) -> CatalogueEntry | None:
    row = await broker.bus().table(CHECKPOINTS_BUCKET, CatalogueEntry).get(checkpoint)
    return row.value if row else None


async def test_a_new_action_is_recorded_published_and_noted(
    broker: MemoryBroker, clock: Clock, one: Controller
) -> None:
    started = await one.engine.start(action(clock))
    assert await jobs_in_stream(one.bus) == [f"{started.id}.1"]
    await dispatched(one, clock, started)


async def test_what_is_due_can_be_called_off_before_it_begins(
    clock: Clock, one: Controller
) -> None:
    """A coroutine that nobody awaits any more would be told as a warning, and fail the test."""
    await one.engine.start(action(clock))
    clock.now += 60
    due = asyncio.create_task(one.engine.do_what_is_due())
    asyncio.get_running_loop().call_soon(due.cancel)
    with pytest.raises(asyncio.CancelledError):
        await due
    gc.collect()


async def test_the_same_id_twice_is_a_conflict(clock: Clock, one: Controller) -> None:
    new = action(clock)
    await one.engine.start(new)
    with pytest.raises(Conflict):
        await one.engine.start(new)


async def test_a_completed_job_is_in_the_catalogue_before_its_action_says_so(
    broker: MemoryBroker, clock: Clock, one: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = await one.engine.start(action(clock))
    seen: list[ActionState | None] = []
    record = one.catalogue.record

    async def observed(facts: CheckpointFacts) -> None:
        await record(facts)
        seen.append(await state_of(broker, started.id))

    monkeypatch.setattr(one.catalogue, "record", observed)
    await report(one.bus, event(started, EventKind.COMPLETED))
    assert await one.events.take_batch() == 1
    assert seen != [ActionState.COMPLETED]
    assert await state_of(broker, started.id) is ActionState.COMPLETED
    entry = await entry_of(broker, started.id)
    assert entry is not None
    assert entry.state is CheckpointState.READY


async def test_a_batch_of_events_is_one_write(
    broker: MemoryBroker, clock: Clock, one: Controller
) -> None:
    started = await one.engine.start(action(clock))
    await jobs_in_stream(one.bus)
    kinds = (EventKind.ACCEPTED, EventKind.STEP_STARTED, EventKind.STEP_DONE, EventKind.COMPLETED)
    await report(one.bus, *(event(started, kind, number) for number, kind in enumerate(kinds)))
    table = broker.bus().table(ACTIONS_BUCKET, Action)
    before = await table.get(started.id)
    await one.events.take_batch()
    after = await table.get(started.id)
    assert before is not None
    assert after is not None
    assert (after.revision - before.revision, after.value.state) == (2, ActionState.COMPLETED)


async def test_what_nobody_published_is_published_by_any_sweep(
    clock: Clock, one: Controller, new: Callable[[], Controller]
) -> None:
    orphan = await one.records.create(action(clock))
    other = new()
    await other.sweep()
    assert await jobs_in_stream(other.bus, wait=0.05) == []
    clock.now += Rules().adopt_seconds
    await other.sweep()
    assert await jobs_in_stream(other.bus) == [f"{orphan.id}.1"]


async def test_two_that_sweep_publish_one_job(
    clock: Clock, one: Controller, new: Callable[[], Controller]
) -> None:
    orphan = await one.records.create(action(clock))
    other = new()
    await asyncio.sleep(0)
    clock.now += Rules().adopt_seconds
    await asyncio.gather(one.sweep(), other.sweep())
    assert await jobs_in_stream(other.bus) == [f"{orphan.id}.1"]


async def test_controllers_that_race_lose_nothing(
    broker: MemoryBroker, clock: Clock, one: Controller, new: Callable[[], Controller]
) -> None:
    started = await one.engine.start(action(clock))
    others = [new(), new()]
    steps = [event(started, EventKind.ACCEPTED, number) for number in range(12)]
    folding = [
        controller.engine.fold(started.id, [step])
        for number, step in enumerate(steps)
        for controller in ([one, *others][number % 3],)
    ]
    await asyncio.gather(*folding, others[0].engine.cancel(started.id))
    row = await broker.bus().table(ACTIONS_BUCKET, Action).get(started.id)
    assert row is not None
    assert (row.value.sequence, row.value.cancel_requested) == (11, True)


async def test_a_confirmation_that_got_lost_changes_nothing(
    broker: MemoryBroker, clock: Clock, one: Controller
) -> None:
    started = await one.engine.start(action(clock))
    await dispatched(one, clock, started)
    await report(one.bus, event(started, EventKind.COMPLETED))
    broker.lose_acks(2)
    with pytest.raises(BusProblem):
        await one.engine.fold(started.id, [event(started, EventKind.COMPLETED)])
    await until(lambda: one.events.take_batch(wait=0.2), lambda count: count == 1)
    assert await state_of(broker, started.id) is ActionState.COMPLETED


async def test_an_event_that_was_not_taken_in_comes_again(
    broker: MemoryBroker, clock: Clock, one: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = await one.engine.start(action(clock))
    await report(one.bus, event(started, EventKind.COMPLETED))
    with monkeypatch.context() as broken:
        broken.setattr("controller.events.LATER_SECONDS", 0.05)
        broken.setattr(one.engine, "fold", _failing)
        await one.events.take_batch()
    await until(lambda: one.events.take_batch(wait=0.2), lambda count: count == 1)
    assert await state_of(broker, started.id) is ActionState.COMPLETED


async def _failing(*_: object) -> None:
    raise BusProblem("on demand")


async def test_duplicated_events_change_nothing(
    broker: MemoryBroker, clock: Clock, one: Controller
) -> None:
    started = await one.engine.start(action(clock))
    broker.duplicate(4)
    await report(
        one.bus, event(started, EventKind.ACCEPTED, 0), event(started, EventKind.COMPLETED, 1)
    )
    while await one.events.take_batch(wait=0.2):
        pass
    assert await state_of(broker, started.id) is ActionState.COMPLETED


async def test_what_is_no_event_is_dropped_once(
    broker: MemoryBroker, clock: Clock, one: Controller
) -> None:
    started = await one.engine.start(action(clock))
    await one.bus.publish(event_subject(NODE, "accepted"), Cancel(action="x"), dedupe="junk")
    await report(one.bus, event(started, EventKind.COMPLETED))
    await one.events.take_batch()
    while await one.events.take_batch(wait=0.7):
        pass
    assert await state_of(broker, started.id) is ActionState.COMPLETED


async def test_a_lost_action_s_checkpoint_still_counts(
    broker: MemoryBroker, clock: Clock, one: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.events.LATER_SECONDS", 0.01)
    lost = action(clock)
    await report(one.bus, event(lost, EventKind.COMPLETED))

    async def take() -> CatalogueEntry | None:
        await one.events.take_batch(wait=0.1)
        return await entry_of(broker, lost.id)

    await until(take, lambda entry: entry is not None)
    assert await one.events.take_batch(wait=0.7) == 0


@pytest.mark.parametrize("bucket", [ACTIONS_BUCKET, CHECKPOINTS_BUCKET])
async def test_a_wiped_bucket_is_filled_again_with_what_matters(
    broker: MemoryBroker, clock: Clock, one: Controller, bucket: str
) -> None:
    ended = await one.engine.start(action(clock))
    await report(one.bus, event(ended, EventKind.COMPLETED))
    await one.events.take_batch()
    unfinished = await one.engine.start(action(clock))
    broker.wipe(bucket)
    await one.sweep()
    assert await state_of(broker, unfinished.id) is not None
    assert await entry_of(broker, ended.id) is not None


async def test_what_one_saw_end_stays_ended_though_another_restores_an_older_record(
    broker: MemoryBroker, clock: Clock, one: Controller, new: Callable[[], Controller]
) -> None:
    started = await one.engine.start(action(clock))
    other = new()
    await other.sweep()
    await one.engine.fold(started.id, [event(started, EventKind.COMPLETED)])
    broker.wipe(ACTIONS_BUCKET)
    await other.sweep()
    assert await state_of(broker, started.id) is not ActionState.COMPLETED
    await one.sweep()
    assert await state_of(broker, started.id) is ActionState.COMPLETED
    await other.sweep()
    known = await other.records.read(started.id)
    assert known is not None
    assert known.value.ended


async def test_a_write_into_a_wiped_bucket_brings_the_record_back(
    broker: MemoryBroker, clock: Clock, one: Controller
) -> None:
    started = await one.engine.start(action(clock))
    broker.wipe(ACTIONS_BUCKET)
    await one.engine.fold(started.id, [event(started, EventKind.COMPLETED)])
    assert await state_of(broker, started.id) is ActionState.COMPLETED


async def test_a_wiped_job_comes_again_when_its_node_stays_quiet(
    broker: MemoryBroker, clock: Clock, one: Controller
) -> None:
    started = await one.engine.start(action(clock))
    await dispatched(one, clock, started)
    broker.wipe(JOBS_STREAM)
    broker.wipe(EVENTS_STREAM)
    clock.now += Rules().quiet_seconds
    await one.sweep()
    await one.bus.ensure_queue(NODE)
    assert await jobs_in_stream(one.bus) == [f"{started.id}.1"]


async def test_a_wish_to_cancel_is_told_to_the_node_again_and_again(
    clock: Clock, one: Controller
) -> None:
    started = await one.engine.start(action(clock))
    await jobs_in_stream(one.bus)
    async with one.bus.listen(cancel_subject(NODE)) as told:
        await one.engine.cancel(started.id)
        clock.now += 5
        await one.engine.do_what_is_due()
        for _ in range(2):
            async with asyncio.timeout(60):
                assert decode(await anext(aiter(told)), Cancel).action == started.id


async def test_a_silent_node_ends_the_action(
    broker: MemoryBroker, clock: Clock, one: Controller
) -> None:
    started = await one.engine.start(action(clock))
    await dispatched(one, clock, started)
    clock.now = started.deadline + Rules().answer_seconds
    await one.sweep()
    ended = await one.records.read(started.id)
    assert ended is not None
    assert ended.value.failure is not None
    assert ended.value.failure.reason == reasons.NODE_SILENT
    with pytest.raises(NotAllowed):
        await one.engine.cancel(started.id)


async def test_old_ended_actions_are_removed(
    broker: MemoryBroker, clock: Clock, one: Controller
) -> None:
    started = await one.engine.start(action(clock))
    await one.engine.fold(started.id, [event(started, EventKind.COMPLETED)])
    clock.now += ENDED_STORED_SECONDS - 1
    await one.sweep()
    assert await state_of(broker, started.id) is not None
    clock.now += 2
    await one.sweep()
    assert await state_of(broker, started.id) is None


async def test_a_deleted_checkpoint_never_comes_back(
    broker: MemoryBroker, clock: Clock, new: Callable[[], Controller]
) -> None:
    one, other = new(), new()
    facts = CheckpointFacts(id=CHECKPOINT, node=NODE, parts=parts_of(TARGET), created=1.0, size=1)
    await one.catalogue.record(facts)
    await other.catalogue.mark_deleted(CHECKPOINT)
    await one.catalogue.record(facts)
    await Catalogue(broker.bus(), clock=clock).record(facts)
    await asyncio.gather(one.catalogue.heal(), other.catalogue.heal())
    for controller in (one, other):
        entry = await controller.catalogue.get(CHECKPOINT)
        assert entry is not None
        assert entry.state is CheckpointState.DELETED
    broker.wipe(CHECKPOINTS_BUCKET)
    await other.catalogue.heal()
    healed = await entry_of(broker, CHECKPOINT)
    assert healed is not None
    assert healed.state is CheckpointState.DELETED


async def test_marking_what_nobody_knows_changes_nothing(
    broker: MemoryBroker, one: Controller
) -> None:
    await one.catalogue.mark_deleted(CHECKPOINT)
    assert await entry_of(broker, CHECKPOINT) is None
