"""To whom checkpoints are promised: told once, and not lost when somebody wipes the bucket."""

import asyncio

import pytest

from controller.catalogue import Catalogue
from kybernate.bus.memory import MemoryBroker
from kybernate.bus.port import Conflict
from schemas.checkpoints import CatalogueEntry, CheckpointState, Heir
from schemas.names import CHECKPOINTS_BUCKET
from tests.support.owned_pods import SET, left

ID = "0b54f2a6-4d2c-4d5e-9f86-1a7c2f0f3c11"
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
