"""How the catalogue stays true of what a node holds, whoever lost or moved what."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from kybernate.bus import Bus
from kybernate.bus.memory import MemoryBroker
from node_worker.holdings import Holdings
from schemas.checkpoints import CatalogueEntry, CheckpointState, Heir
from schemas.manifest import CheckpointFacts
from schemas.names import CHECKPOINTS_BUCKET
from schemas.orders import CheckpointOrder, DeleteOrder, Place, only_part
from tests.support.checkpoints import parts_of
from tests.support.workshop import Workshop, new_id, target


class House:
    def __init__(self, shop: Workshop, broker: MemoryBroker) -> None:
        self.shop = shop
        self.broker = broker
        self.bus: Bus = broker.bus()
        self.table = self.bus.table(CHECKPOINTS_BUCKET, CatalogueEntry)
        self.holdings = Holdings(self.bus, shop.means)

    async def catalogue(self) -> dict[str, CatalogueEntry]:
        await self.holdings.announce()
        return {key: row.value for key, row in (await self.table.all()).items()}

    async def asleep(self) -> str:
        """A checkpoint of a container c1 that waits in memory."""
        order = CheckpointOrder(
            parts=only_part(target("c1")), checkpoint=new_id(), place=Place.MEMORY
        )
        assert (await self.shop.run(order)).result is not None
        return order.checkpoint


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(Workshop(tmp_path), MemoryBroker())
    await house.bus.ensure_topology()
    yield house
    house.shop.close()


async def test_a_lost_catalogue_comes_back_from_disk_and_memory(house: House) -> None:
    await house.shop.start("c1")
    on_disk = await house.shop.checkpointed("c1", leave_running=True)
    in_memory = await house.asleep()
    first = await house.catalogue()
    assert {key: entry.facts.place for key, entry in first.items()} == {
        on_disk: Place.DISK,
        in_memory: Place.MEMORY,
    }
    assert {entry.state for entry in first.values()} == {CheckpointState.READY}
    house.broker.wipe(CHECKPOINTS_BUCKET)
    again = await house.catalogue()
    assert {key: entry.facts for key, entry in again.items()} == {
        key: entry.facts for key, entry in first.items()
    }


async def test_what_the_catalogue_knows_is_left_alone(house: House) -> None:
    await house.shop.start("c1")
    checkpoint = await house.shop.checkpointed("c1")
    entry = (await house.catalogue())[checkpoint]
    deleted = CatalogueEntry(facts=entry.facts, state=CheckpointState.DELETED, updated=1.0)
    await house.table.put(checkpoint, deleted)
    assert (await house.catalogue())[checkpoint] == deleted
    await house.shop.run(DeleteOrder(checkpoint=checkpoint))
    assert (await house.catalogue())[checkpoint] == deleted


async def test_what_was_taken_away_by_hand_is_missing_until_it_is_back(house: House) -> None:
    await house.shop.start("c1")
    checkpoint = await house.shop.checkpointed("c1")
    ready = (await house.catalogue())[checkpoint]
    folder, elsewhere = house.shop.store.folder(checkpoint), house.shop.settings.state / "elsewhere"
    shutil.move(folder, elsewhere)

    missing = (await house.catalogue())[checkpoint]
    assert missing.state is CheckpointState.MISSING
    assert str(house.shop.store.root) in missing.problem
    assert (await house.catalogue())[checkpoint] == missing  # nothing is written without news

    shutil.move(elsewhere, folder)
    back = (await house.catalogue())[checkpoint]
    assert (back.state, back.problem, back.facts) == (CheckpointState.READY, "", ready.facts)


async def test_who_was_promised_what_is_missing_stays_promised_it(house: House) -> None:
    await house.shop.start("c1")
    checkpoint = await house.shop.checkpointed("c1")
    heir = Heir(claim="a pod's", since=1.0)
    entry = msgspec.structs.replace((await house.catalogue())[checkpoint], heir=heir)
    await house.table.put(checkpoint, entry)
    shutil.rmtree(house.shop.store.folder(checkpoint))
    missing = (await house.catalogue())[checkpoint]
    assert (missing.state, missing.heir) == (CheckpointState.MISSING, heir)


async def test_a_container_that_does_not_wait_in_memory_any_more_is_missing(house: House) -> None:
    await house.shop.start("c1")
    checkpoint = await house.asleep()
    assert (await house.catalogue())[checkpoint].state is CheckpointState.READY
    house.shop.ledger.forget_sleeper(checkpoint)
    missing = (await house.catalogue())[checkpoint]
    assert missing.state is CheckpointState.MISSING
    assert "memory" in missing.problem


async def test_what_lies_on_other_nodes_is_left_to_them(house: House) -> None:
    facts = CheckpointFacts(
        id=new_id(), node="another", parts=parts_of(target("c1")), created=0.0, size=1
    )
    entry = CatalogueEntry(facts=facts, state=CheckpointState.READY, updated=1.0)
    await house.table.put(facts.id, entry)
    assert (await house.catalogue())[facts.id] == entry
