"""What every bus promises of its queues, shown on the in-memory twin and on a real NATS server."""

import asyncio

import msgspec

from kybernate import telemetry
from kybernate.bus import Bus
from schemas.names import event_subject, job_subject
from tests.support.buses import LONGEST_WAIT, NODE, Note, Place, fetch_all, publish_job


async def test_a_job_reaches_its_node_once(bus: Bus) -> None:
    await publish_job(bus, "a")
    queue = bus.jobs(NODE)
    [delivery] = await queue.fetch(10, wait=LONGEST_WAIT)
    assert delivery.subject == job_subject(NODE, "checkpoint")
    assert msgspec.json.decode(delivery.data) == {"text": "a"}
    assert delivery.times == 1
    await delivery.ack()
    assert await queue.fetch(10, wait=0.1) == []


async def test_jobs_of_other_nodes_stay_away(bus: Bus) -> None:
    await bus.ensure_queue("node")
    await bus.ensure_queue("node.one.more")
    await publish_job(bus, "a")
    assert await bus.jobs("node").fetch(1, wait=0.1) == []
    assert await bus.jobs("node.one.more").fetch(1, wait=0.1) == []
    assert await fetch_all(bus, 1) == ["a"]


async def test_a_job_waits_for_a_worker_that_comes_later(bus: Bus) -> None:
    await bus.publish(job_subject("late", "delete"), Note("a"), dedupe="a")
    await bus.ensure_queue("late")
    [delivery] = await bus.jobs("late").fetch(1, wait=LONGEST_WAIT)
    await delivery.ack()


async def test_a_waiting_fetch_hears_of_a_new_job(bus: Bus) -> None:
    fetching = asyncio.create_task(bus.jobs(NODE).fetch(5, wait=LONGEST_WAIT))
    await asyncio.sleep(0.1)
    await publish_job(bus, "a")
    assert len(await fetching) == 1


async def test_a_fetch_brings_all_that_lie_ready_up_to_its_count(bus: Bus) -> None:
    await asyncio.gather(*(publish_job(bus, str(number)) for number in range(25)))
    queue = bus.jobs(NODE)
    assert len(await queue.fetch(20, wait=LONGEST_WAIT)) == 20
    assert len(await queue.fetch(20, wait=LONGEST_WAIT)) == 5


async def test_order_is_kept(bus: Bus) -> None:
    for number in range(10):
        await publish_job(bus, str(number))
    assert await fetch_all(bus, 10) == [str(number) for number in range(10)]


async def test_a_repeated_publication_changes_nothing(bus: Bus) -> None:
    await publish_job(bus, "a", dedupe="one")
    await publish_job(bus, "b", dedupe="one")
    await publish_job(bus, "c", dedupe="two")
    assert await fetch_all(bus, 2) == ["a", "c"]


async def test_later_means_again_after_a_while(bus: Bus) -> None:
    await publish_job(bus, "a")
    queue = bus.jobs(NODE)
    [delivery] = await queue.fetch(1, wait=LONGEST_WAIT)
    await delivery.later(0.4)
    assert await queue.fetch(1, wait=0.1) == []
    [again] = await queue.fetch(1, wait=LONGEST_WAIT)
    assert again.times == 2
    await again.ack()


async def test_a_fetch_given_up_loses_nothing(bus: Bus) -> None:
    queue = bus.jobs(NODE)
    fetching = asyncio.create_task(queue.fetch(5, wait=LONGEST_WAIT))
    await asyncio.sleep(0.1)
    fetching.cancel()
    await asyncio.wait({fetching})
    await publish_job(bus, "a")
    [delivery] = await queue.fetch(1, wait=LONGEST_WAIT)
    await delivery.ack()


async def test_controllers_share_the_events(place: Place, bus: Bus) -> None:
    async with place.connected() as other:
        for number in range(20):
            subject = event_subject(NODE, "accepted")
            await bus.publish(subject, Note(str(number)), dedupe=str(number))
        seen = []
        for events in (bus.events(), other.events(), bus.events(), other.events()):
            for delivery in await events.fetch(5, wait=LONGEST_WAIT):
                seen.append(msgspec.json.decode(delivery.data)["text"])
                await delivery.ack()
    assert sorted(seen, key=int) == [str(number) for number in range(20)]


async def test_the_trace_travels_with_a_message(bus: Bus) -> None:
    with telemetry.span("outer"):
        wanted = telemetry.trace_id()
        await publish_job(bus, "a")
    [delivery] = await bus.jobs(NODE).fetch(1, wait=LONGEST_WAIT)
    with telemetry.continuing(delivery.headers):
        assert telemetry.trace_id() == wanted
    await delivery.ack()


async def test_too_many_in_flight_hold_up_nobody_for_long(bus: Bus) -> None:
    await asyncio.gather(*(publish_job(bus, str(number)) for number in range(1500)))
    queue = bus.jobs(NODE)
    held = await queue.fetch(1500, wait=1)
    assert len(held) >= 1000
    await asyncio.gather(*(delivery.ack() for delivery in held))
    assert len(set(await fetch_all(bus, 1500 - len(held)))) == 1500 - len(held)


async def test_thousands_at_once(bus: Bus) -> None:
    await asyncio.gather(*(publish_job(bus, str(number)) for number in range(2000)))
    texts = await fetch_all(bus, 2000)
    assert sorted(texts, key=int) == [str(number) for number in range(2000)]
