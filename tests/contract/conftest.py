"""The bus under test, in memory and on NATS."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kybernate.bus import Bus
from kybernate.bus.memory import MemoryBroker
from kybernate.embedded.nats_server import nats_server
from tests.support.buses import NODE, MemoryPlace, NatsPlace, Place


@pytest.fixture
def ack_wait() -> float:
    """So long that nothing comes again; a file that waits for that says less."""
    return 60.0


@pytest.fixture(params=["memory", "nats"])
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, ack_wait: float
) -> AsyncIterator[Place]:
    if request.param == "memory":
        yield MemoryPlace(MemoryBroker(ack_wait=ack_wait))
        return
    async with nats_server(tmp_path / "nats") as server:
        yield NatsPlace(server, ack_wait=ack_wait)


@pytest.fixture
async def bus(place: Place) -> AsyncIterator[Bus]:
    async with place.connected() as bus:
        await bus.ensure_topology()
        await bus.ensure_queue(NODE)
        yield bus
