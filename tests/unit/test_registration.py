"""What a node tells about itself, and how a lost catalogue comes back from it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kybernate.bus import Bus
from kybernate.bus.memory import MemoryBroker
from node_worker.jobs import Jobs
from node_worker.registration import Registration
from node_worker.reporter import Reporter
from schemas import reasons
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.names import CHECKPOINTS_BUCKET, NODES_BUCKET, node_key
from schemas.nodes import Inventory
from schemas.orders import CheckpointOrder, DeleteOrder, Place, only_part
from tests.support.workshop import NODE, Workshop, new_id, target


class Office:
    def __init__(self, shop: Workshop, broker: MemoryBroker) -> None:
        self.shop = shop
        self.broker = broker
        self.bus: Bus = broker.bus()
        reporter = Reporter(self.bus, NODE, shop.ledger)
        jobs = Jobs(lambda *_: None, shop.ledger, reporter)  # type: ignore[arg-type]
        self.registration = Registration(self.bus, shop.means, jobs, "instance")
        self.registration.recovered = True

    async def row(self) -> Inventory:
        await self.registration.beat()
        row = await self.bus.table(NODES_BUCKET, Inventory).get(node_key(NODE))
        assert row is not None
        return row.value

    async def catalogue(self) -> dict[str, CatalogueEntry]:
        await self.registration.announce()
        rows = await self.bus.table(CHECKPOINTS_BUCKET, CatalogueEntry).all()
        return {key: row.value for key, row in rows.items()}


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(Workshop(tmp_path), MemoryBroker())
    await office.bus.ensure_topology()
    yield office
    office.shop.close()


async def test_a_heartbeat_says_what_is_there(office: Office) -> None:
    await office.shop.start("c1", gpu=True)
    await office.shop.start("c2")
    row = await office.row()
    assert row.ready
    assert set(row.containers) == {target("c1"), target("c2")}
    assert [gpu.model for gpu in row.gpus] == ["Twin 100"]
    assert row.host.cpu_model
    assert row.free_disk_bytes > 0
    assert row.free_memory_bytes > 0


async def test_not_ready_while_something_is_to_be_undone(office: Office) -> None:
    office.registration.recovered = False
    assert not (await office.row()).ready


async def test_not_ready_without_containerd(office: Office) -> None:
    office.shop.runtime.down()
    row = await office.row()
    assert not row.ready
    assert reasons.RUNTIME_UNAVAILABLE in [warning.reason for warning in row.warnings]


async def test_a_wiped_bucket_comes_back_with_the_next_heartbeat(office: Office) -> None:
    await office.row()
    office.broker.wipe(NODES_BUCKET)
    assert (await office.row()).node == NODE


async def test_a_lost_catalogue_comes_back_from_disk_and_memory(office: Office) -> None:
    await office.shop.start("c1")
    on_disk = await office.shop.checkpointed("c1", leave_running=True)
    in_memory = CheckpointOrder(
        parts=only_part(target("c1")), checkpoint=new_id(), place=Place.MEMORY
    )
    assert (await office.shop.run(in_memory)).result is not None
    first = await office.catalogue()
    assert {key: entry.facts.place for key, entry in first.items()} == {
        on_disk: Place.DISK,
        in_memory.checkpoint: Place.MEMORY,
    }
    assert {entry.state for entry in first.values()} == {CheckpointState.READY}
    office.broker.wipe(CHECKPOINTS_BUCKET)
    again = await office.catalogue()
    assert {key: entry.facts for key, entry in again.items()} == {
        key: entry.facts for key, entry in first.items()
    }


async def test_what_the_catalogue_knows_is_left_alone(office: Office) -> None:
    await office.shop.start("c1")
    checkpoint = await office.shop.checkpointed("c1")
    entry = (await office.catalogue())[checkpoint]
    deleted = CatalogueEntry(facts=entry.facts, state=CheckpointState.DELETED, updated=1.0)
    await office.bus.table(CHECKPOINTS_BUCKET, CatalogueEntry).put(checkpoint, deleted)
    assert (await office.catalogue())[checkpoint] == deleted
    await office.shop.run(DeleteOrder(checkpoint=checkpoint))
    assert (await office.catalogue())[checkpoint] == deleted
