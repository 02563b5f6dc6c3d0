"""The bad luck that the in-memory bus brings on demand; its ordinary ways are the contract's."""

import msgspec
import pytest

from kybernate.bus import Bus, BusUnavailable
from kybernate.bus.memory import MemoryBroker
from schemas.names import ACTIONS_BUCKET, job_subject


class Note(msgspec.Struct, frozen=True):
    text: str = ""


async def ready(broker: MemoryBroker) -> Bus:
    bus = broker.bus()
    await bus.ensure_topology()
    await bus.ensure_queue("n")
    return bus


async def test_a_lost_acknowledgement_hides_that_the_deed_was_done() -> None:
    broker = MemoryBroker()
    bus = await ready(broker)
    broker.lose_acks(2)
    with pytest.raises(BusUnavailable):
        await bus.publish(job_subject("n", "delete"), Note(), dedupe="a")
    with pytest.raises(BusUnavailable):
        await bus.table(ACTIONS_BUCKET, Note).create("k", Note("a"))
    await bus.publish(job_subject("n", "delete"), Note(), dedupe="a")
    row = await bus.table(ACTIONS_BUCKET, Note).get("k")
    assert row is not None
    assert len(await bus.jobs("n").fetch(9, wait=0)) == 1


async def test_a_duplicated_delivery_comes_twice() -> None:
    broker = MemoryBroker()
    bus = await ready(broker)
    await bus.publish(job_subject("n", "delete"), Note(), dedupe="a")
    broker.duplicate()
    queue = bus.jobs("n")
    [first] = await queue.fetch(1, wait=0)
    [second] = await queue.fetch(1, wait=0)
    assert (first.times, second.times) == (1, 2)
    await first.ack()
    await second.ack()
    assert await queue.fetch(1, wait=0) == []


async def test_nothing_works_without_a_connection() -> None:
    broker = MemoryBroker()
    bus = await ready(broker)
    broker.disconnect()
    assert not bus.connected
    with pytest.raises(BusUnavailable):
        await bus.ensure_topology()
    broker.reconnect()
    await bus.ensure_topology()
