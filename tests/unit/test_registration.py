"""What a node tells about itself."""

import logging
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kybernate.bus import Bus
from kybernate.bus.memory import MemoryBroker
from node_worker.jobs import Jobs
from node_worker.registration import Registration
from node_worker.reporter import Reporter
from schemas import reasons
from schemas.names import NODES_BUCKET, node_key
from schemas.nodes import Inventory
from tests.support.workshop import NODE, Workshop, target


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


async def test_not_ready_where_no_checkpoint_can_be_written(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """Told once in the log, with every heartbeat to everybody else; and once that it is over."""
    caplog.set_level(logging.INFO, "node_worker.registration")
    assert (await office.row()).ready
    shutil.rmtree(office.shop.store.root)
    office.shop.store.root.write_text("a file in the place of the folder")
    for _ in range(2):
        row = await office.row()
        assert not row.ready
        assert str(office.shop.store.root) in row.problem
        assert reasons.STORE_UNUSABLE in [warning.reason for warning in row.warnings]
    office.shop.store.root.unlink()
    assert (await office.row()).problem == ""
    told = [record.getMessage() for record in caplog.records]
    assert [words.split(":")[0] for words in told] == [
        f"node {NODE} takes no jobs",
        f"node {NODE} takes jobs",
    ]


async def test_a_full_disk_is_told_and_checkpoints_can_still_be_deleted(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(office.shop.store), "free_bytes", lambda _: 0)
    row = await office.row()
    assert row.ready
    assert reasons.DISK_FULL in [warning.reason for warning in row.warnings]


async def test_a_wiped_bucket_comes_back_with_the_next_heartbeat(office: Office) -> None:
    await office.row()
    office.broker.wipe(NODES_BUCKET)
    assert (await office.row()).node == NODE
