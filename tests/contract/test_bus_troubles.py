"""What every bus does when something is told to nobody, too large, missing, wiped or away."""

import asyncio
from contextlib import AsyncExitStack

import msgspec
import pytest

from kybernate.bus import Bus, BusUnavailable, QueueMissing, TooLarge, TopologyMissing
from schemas.messages import Cancel
from schemas.names import (
    ACTIONS_BUCKET,
    EVENTS_STREAM,
    JOBS_STREAM,
    MAX_MESSAGE_BYTES,
    cancel_subject,
    job_subject,
)
from tests.support.buses import (
    LONGEST_WAIT,
    NODE,
    Note,
    Place,
    fetch_all,
    publish_job,
    until_connected,
)


async def test_a_listener_hears_what_is_told(place: Place, bus: Bus) -> None:
    async with place.connected() as other, other.listen(cancel_subject(NODE)) as heard:
        await bus.tell(cancel_subject(NODE), Cancel(action="a"))
        assert msgspec.json.decode(await anext(heard), type=Cancel) == Cancel(action="a")


async def test_nobody_needs_to_listen(bus: Bus) -> None:
    await bus.tell(cancel_subject(NODE), Cancel(action="a"))


async def test_everything_too_large_is_refused(bus: Bus) -> None:
    large = Note("x" * MAX_MESSAGE_BYTES)
    with pytest.raises(TooLarge):
        await bus.publish(job_subject(NODE, "delete"), large, dedupe="a")
    with pytest.raises(TooLarge):
        await bus.tell(cancel_subject(NODE), large)
    with pytest.raises(TooLarge):
        await bus.table(ACTIONS_BUCKET, Note).put("k", large)


async def test_the_largest_message_passes(bus: Bus) -> None:
    largest = Note("x" * (MAX_MESSAGE_BYTES - len(msgspec.json.encode(Note()))))
    await bus.publish(job_subject(NODE, "delete"), largest, dedupe="a")
    await bus.table(ACTIONS_BUCKET, Note).put("k", largest)
    assert await fetch_all(bus, 1) == [largest.text]


async def test_a_missing_topology_is_told_and_healed(place: Place) -> None:
    async with place.connected() as bus:
        with pytest.raises(TopologyMissing):
            await publish_job(bus, "a")
        with pytest.raises(TopologyMissing):
            await bus.ensure_queue(NODE)
        with pytest.raises(QueueMissing):
            await bus.jobs(NODE).fetch(1, wait=1)
        for operation in (
            bus.table(ACTIONS_BUCKET, Note).get("k"),
            bus.table(ACTIONS_BUCKET, Note).put("k", Note()),
            bus.table(ACTIONS_BUCKET, Note).all(),
            bus.table(ACTIONS_BUCKET, Note).delete("k"),
        ):
            with pytest.raises(TopologyMissing):
                await operation
        await asyncio.gather(*(bus.ensure_topology() for _ in range(4)))
        await bus.ensure_queue(NODE)
        await publish_job(bus, "a")
        assert await fetch_all(bus, 1) == ["a"]


async def test_a_wiped_stream_ends_the_wait_and_is_healed(place: Place, bus: Bus) -> None:
    queue = bus.jobs(NODE)
    fetching = asyncio.create_task(queue.fetch(1, wait=LONGEST_WAIT))
    await asyncio.sleep(0.1)
    await place.wipe(JOBS_STREAM)
    with pytest.raises(QueueMissing):
        await fetching
    with pytest.raises(TopologyMissing):
        await publish_job(bus, "a")
    await bus.ensure_topology()
    await bus.ensure_queue(NODE)
    await publish_job(bus, "a")
    [delivery] = await queue.fetch(1, wait=LONGEST_WAIT)
    await delivery.ack()


async def test_a_row_of_a_wiped_bucket_is_not_taken_for_a_new_one(place: Place, bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    for text in ("old", "new"):
        await table.create("k", Note(text))
        assert {key: row.value for key, row in (await table.all()).items()} == {"k": Note(text)}
        await place.wipe(ACTIONS_BUCKET)
        await bus.ensure_topology()


async def test_wiped_events_and_buckets_are_healed(place: Place, bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    await table.put("k", Note())
    await place.wipe(EVENTS_STREAM)
    await place.wipe(ACTIONS_BUCKET)
    with pytest.raises(QueueMissing):
        await bus.events().fetch(1, wait=1)
    with pytest.raises(TopologyMissing):
        await table.all()
    await bus.ensure_topology()
    assert await table.all() == {}
    assert await bus.events().fetch(1, wait=0.1) == []


async def test_what_was_published_survives_a_server_that_goes_and_comes(
    place: Place, bus: Bus
) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    await publish_job(bus, "a")
    await table.put("k", Note("v"))
    await place.down()
    operations = (publish_job(bus, "b"), table.get("k"), bus.jobs(NODE).fetch(1, wait=1))
    for result in await asyncio.gather(*operations, return_exceptions=True):
        assert isinstance(result, BusUnavailable)
    assert not bus.connected
    await place.up()
    await until_connected(bus)
    assert set(await table.all()) == {"k"}
    assert await fetch_all(bus, 1) == ["a"]


async def test_a_wait_ends_when_the_connection_is_lost(place: Place, bus: Bus) -> None:
    fetching = asyncio.create_task(bus.jobs(NODE).fetch(1, wait=LONGEST_WAIT))
    await asyncio.sleep(0.1)
    await place.down()
    with pytest.raises(BusUnavailable):
        await fetching


async def test_listeners_and_hints_come_back_with_the_connection(place: Place) -> None:
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(place.connected())
        other = await stack.enter_async_context(place.connected())
        heard = await stack.enter_async_context(other.listen(cancel_subject(NODE)))
        await place.down()
        await place.up()
        hearing = asyncio.ensure_future(anext(heard))
        async with asyncio.timeout(60):
            while not hearing.done():
                if bus.connected:
                    await bus.tell(cancel_subject(NODE), Cancel(action="a"))
                await asyncio.sleep(0.05)
        assert msgspec.json.decode(await hearing, type=Cancel).action == "a"
