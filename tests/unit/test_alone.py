"""One worker per state folder and one per node's name."""

import asyncio
from pathlib import Path

import pytest

from kybernate.bus.memory import MemoryBroker
from kybernate.tasks import end
from node_worker.alone import NodeClaim, NodeTaken, alone_in


def test_one_worker_in_a_state_folder(tmp_path: Path) -> None:
    lock = tmp_path / "state" / "worker.lock"
    with alone_in(lock), pytest.raises(NodeTaken, match="--state"), alone_in(lock):
        pass
    with alone_in(lock):
        assert lock.exists()


async def test_a_second_worker_of_the_name_is_told_who_has_it() -> None:
    broker = MemoryBroker()
    first = NodeClaim(broker.bus(), "node", "first")
    await first.take()
    answering = asyncio.create_task(first.run_answering())
    await asyncio.sleep(0)
    try:
        with pytest.raises(NodeTaken, match="first serves node node already"):
            await NodeClaim(broker.bus(), "node", "second").take()
        await NodeClaim(broker.bus(), "another node", "second").take()
    finally:
        await end(answering)
    await NodeClaim(broker.bus(), "node", "second").take()


async def test_of_two_that_start_at_once_one_stays() -> None:
    broker = MemoryBroker()
    claims = [NodeClaim(broker.bus(), "node", name) for name in ("a", "b")]
    ends = await asyncio.gather(*(claim.take() for claim in claims), return_exceptions=True)
    assert ends[0] is None
    assert isinstance(ends[1], NodeTaken)


async def test_waits_for_a_bus_that_is_away() -> None:
    broker = MemoryBroker()
    broker.disconnect()
    taking = asyncio.create_task(NodeClaim(broker.bus(), "node", "first").take())
    await asyncio.sleep(0.05)
    assert not taking.done()
    broker.reconnect()
    await taking
