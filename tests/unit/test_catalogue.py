"""To whom checkpoints are promised: told once, and not lost when somebody wipes the bucket. And
what is kept of deleted ones.
"""

import asyncio

import msgspec
import pytest

from controller.catalogue import Catalogue
from controller.records import ENDED_STORED_SECONDS
from kybernate.bus.memory import MemoryBroker
from kybernate.bus.port import Conflict
from schemas.checkpoints import CatalogueEntry, CheckpointState, Heir
from schemas.names import CHECKPOINTS_BUCKET
from tests.support.owned_pods import SET, left

ID = "0b54f2a6-4d2c-4d5e-9f86-1a7c2f0f3c11"
OTHER = "1c65a3b7-5e3d-4e6f-8a97-2b8d3a1a4d22"
FIRST, SECOND = Heir(claim="first", since=1.0), Heir(claim="second", since=2.0)


@pytest.fixture
async def broker() -> MemoryBroker:
    broker = MemoryBroker()
    await broker.bus().ensure_topology()
    return broker


async def recorded(broker: MemoryBroker) -> tuple[Catalogue, CatalogueEntry]:
    catalogue = Catalogue(broker.bus())
    await catalogue.record(left(ID, SET).facts)
    entry = await catalogue.get(ID)
    assert entry
    return catalogue, entry


async def test_of_many_at_once_one_is_promised_it(broker: MemoryBroker) -> None:
    _, entry = await recorded(broker)
    heirs = [Heir(claim=str(number), since=1.0) for number in range(8)]
    ends = await asyncio.gather(
        *(Catalogue(broker.bus()).bequeath(entry, heir) for heir in heirs), return_exceptions=True
    )

    assert [type(end) for end in ends if end is not None] == [Conflict] * 7
    kept = await Catalogue(broker.bus()).get(ID)
    assert kept
    assert kept.heir == heirs[ends.index(None)]


async def test_what_changed_meanwhile_is_not_promised(broker: MemoryBroker) -> None:
    catalogue, entry = await recorded(broker)
    await catalogue.bequeath(entry, FIRST)
    with pytest.raises(Conflict):
        await catalogue.bequeath(entry, SECOND)
    promised = await catalogue.get(ID)
    assert promised
    await catalogue.bequeath(promised, SECOND)
    await catalogue.mark_deleted(ID)
    with pytest.raises(Conflict):
        await catalogue.bequeath(promised, FIRST)


async def test_deleting_keeps_who_inherited(broker: MemoryBroker) -> None:
    catalogue, entry = await recorded(broker)
    other = Catalogue(broker.bus())
    await other.get(ID)
    await catalogue.bequeath(entry, FIRST)
    await other.mark_deleted(ID)

    deleted = await Catalogue(broker.bus()).get(ID)
    assert deleted
    assert (deleted.state, deleted.heir) == (CheckpointState.DELETED, FIRST)


async def test_a_promise_survives_that_the_bucket_is_wiped(broker: MemoryBroker) -> None:
    """Also when the node enters its checkpoints again before a controller does."""
    catalogue, entry = await recorded(broker)
    await catalogue.bequeath(entry, FIRST)
    broker.wipe(CHECKPOINTS_BUCKET)
    await Catalogue(broker.bus()).record(entry.facts)
    await catalogue.heal()

    healed = await Catalogue(broker.bus()).get(ID)
    assert healed
    assert healed.heir == FIRST


async def test_of_a_deleted_checkpoint_it_is_kept_what_it_was_and_no_template(
    broker: MemoryBroker,
) -> None:
    facts = left(ID, SET).facts
    assert facts.pod
    whole = msgspec.structs.replace(facts.pod, template="t" * 3000)
    catalogue = Catalogue(broker.bus())
    await catalogue.record(msgspec.structs.replace(facts, pod=whole))
    await catalogue.mark_deleted(ID)

    deleted = await Catalogue(broker.bus()).get(ID)
    assert deleted
    assert deleted.facts == msgspec.structs.replace(
        facts, pod=msgspec.structs.replace(whole, template="")
    )


async def test_a_deleted_checkpoint_is_forgotten_after_a_week_by_everybody(
    broker: MemoryBroker,
) -> None:
    now = 1000.0
    one, other = (Catalogue(broker.bus(), clock=lambda: now) for _ in range(2))
    for id in (ID, OTHER):
        await one.record(left(id, SET).facts)
    await one.mark_deleted(ID)
    await other.heal()
    now += ENDED_STORED_SECONDS
    for catalogue in (one, other, one):
        await catalogue.heal()
    assert {entry.facts.id for entry in await other.all()} == {ID, OTHER}
    now += 1
    for catalogue in (one, other, one):
        await catalogue.heal()

    assert await Catalogue(broker.bus()).get(ID) is None
    for catalogue in (one, other):
        assert await catalogue.get(ID) is None
        assert {entry.facts.id for entry in catalogue.seen()} == {OTHER}


async def test_what_others_write_is_seen_without_reading_everything(broker: MemoryBroker) -> None:
    catalogue, entry = await recorded(broker)
    other = Catalogue(broker.bus())
    await other.refresh()
    assert other.seen() == (entry,)
    await catalogue.bequeath(entry, FIRST)
    await catalogue.record(left(OTHER, SET).facts)
    await other.refresh()
    assert {(one.facts.id, one.heir) for one in other.seen()} == {(ID, FIRST), (OTHER, None)}
    broker.wipe(CHECKPOINTS_BUCKET)
    await broker.bus().ensure_topology()
    await catalogue.heal()
    await catalogue.mark_deleted(OTHER)
    await other.refresh()
    assert [one.state for one in other.seen() if one.facts.id == OTHER] == [CheckpointState.DELETED]


async def test_what_a_node_says_of_a_promised_one_is_believed(broker: MemoryBroker) -> None:
    """Of the heir it may have known nothing: somebody wiped the bucket, and it was faster."""
    catalogue, entry = await recorded(broker)
    await catalogue.bequeath(entry, FIRST)
    table = broker.bus().table(CHECKPOINTS_BUCKET, CatalogueEntry)
    missing = msgspec.structs.replace(entry, state=CheckpointState.MISSING, problem="taken away")
    await table.put(ID, missing)
    await catalogue.heal()

    healed = await Catalogue(broker.bus()).get(ID)
    assert healed
    assert (healed.state, healed.problem, healed.heir) == (
        CheckpointState.MISSING,
        "taken away",
        FIRST,
    )


async def test_nothing_of_what_was_deleted_is_called_missing(broker: MemoryBroker) -> None:
    catalogue, entry = await recorded(broker)
    await catalogue.mark_deleted(ID)
    assert await catalogue.mark_missing(entry.facts.node, "its node is gone") == ()
    deleted = await Catalogue(broker.bus()).get(ID)
    assert deleted
    assert deleted.state is CheckpointState.DELETED
