"""What every bus promises, shown on the in-memory twin and on a real NATS server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from kybernate import telemetry
from kybernate.bus import (
    Bus,
    BusSettings,
    BusUnavailable,
    Conflict,
    Mark,
    QueueMissing,
    Row,
    TooLarge,
    TopologyMissing,
)
from kybernate.bus.memory import MemoryBroker
from kybernate.bus.nats import connect
from kybernate.bus.topology import bucket_stream
from kybernate.embedded.nats_server import NatsServer, nats_server
from schemas.messages import Cancel
from schemas.names import (
    ACTIONS_BUCKET,
    EVENTS_STREAM,
    JOBS_STREAM,
    MAX_MESSAGE_BYTES,
    cancel_subject,
    event_subject,
    job_subject,
)

NODE = "node.one"
ACK_WAIT = 1.0


class Note(msgspec.Struct, frozen=True):
    text: str = ""


class Place:
    """One bus under test: programs connect to it, and bad luck can strike it."""

    def __init__(self, connected: Callable[[], AbstractAsyncContextManager[Bus]]) -> None:
        self.connected = connected

    async def down(self) -> None: ...

    async def up(self) -> None: ...

    async def wipe(self, name: str) -> None: ...

    async def put_raw(self, bucket: str, key: str, payload: bytes) -> None: ...


class MemoryPlace(Place):
    def __init__(self, broker: MemoryBroker) -> None:
        @asynccontextmanager
        async def connected() -> AsyncIterator[Bus]:
            yield broker.bus()

        super().__init__(connected)
        self._broker = broker

    async def down(self) -> None:
        self._broker.disconnect()

    async def up(self) -> None:
        self._broker.reconnect()

    async def wipe(self, name: str) -> None:
        self._broker.wipe(name)

    async def put_raw(self, bucket: str, key: str, payload: bytes) -> None:
        self._broker.write(bucket, key, payload)


class NatsPlace(Place):
    def __init__(self, server: NatsServer) -> None:
        settings = BusSettings(servers=(server.url,), ack_wait=ACK_WAIT)
        super().__init__(lambda: connect(settings, name="test"))
        self._server = server

    async def down(self) -> None:
        await self._server.stop()

    async def up(self) -> None:
        await self._server.start()

    async def wipe(self, name: str) -> None:
        stream = bucket_stream(name) if name == ACTIONS_BUCKET else name
        await self._request(f"$JS.API.STREAM.DELETE.{stream}", b"")

    async def put_raw(self, bucket: str, key: str, payload: bytes) -> None:
        await self._request(f"$KV.{bucket}.{key}", payload)

    async def _request(self, subject: str, payload: bytes) -> None:
        import nats  # noqa: PLC0415 - only here, as an operator's tool would use it

        client = await nats.connect(self._server.url)
        await client.request(subject, payload, timeout=5)
        await client.close()


@pytest.fixture(params=["memory", "nats"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "memory":
        yield MemoryPlace(MemoryBroker(ack_wait=ACK_WAIT))
        return
    async with nats_server(tmp_path / "nats") as server:
        yield NatsPlace(server)


@pytest.fixture
async def bus(place: Place) -> AsyncIterator[Bus]:
    async with place.connected() as bus:
        await bus.ensure_topology()
        await bus.ensure_queue(NODE)
        yield bus


async def publish_job(bus: Bus, text: str, *, dedupe: str | None = None) -> None:
    await bus.publish(job_subject(NODE, "checkpoint"), Note(text), dedupe=dedupe or text)


async def fetch_all(bus: Bus, count: int) -> list[str]:
    """The texts of so many jobs of the node, each acknowledged."""
    queue = bus.jobs(NODE)
    texts: list[str] = []
    while len(texts) < count:
        deliveries = await queue.fetch(count - len(texts), wait=2)
        texts += [msgspec.json.decode(one.data, type=Note).text for one in deliveries]
        await asyncio.gather(*(one.ack() for one in deliveries))
    return texts


async def until_connected(bus: Bus) -> None:
    async with asyncio.timeout(20):
        while not bus.connected:  # noqa: ASYNC110 - as a program would look
            await asyncio.sleep(0.05)


class TestQueues:
    async def test_a_job_reaches_its_node_once(self, bus: Bus) -> None:
        await publish_job(bus, "a")
        queue = bus.jobs(NODE)
        [delivery] = await queue.fetch(10, wait=2)
        assert delivery.subject == job_subject(NODE, "checkpoint")
        assert msgspec.json.decode(delivery.data) == {"text": "a"}
        assert delivery.times == 1
        await delivery.ack()
        assert await queue.fetch(10, wait=0.1) == []

    async def test_jobs_of_other_nodes_stay_away(self, bus: Bus) -> None:
        await bus.ensure_queue("node")
        await bus.ensure_queue("node.one.more")
        await publish_job(bus, "a")
        assert await bus.jobs("node").fetch(1, wait=0.1) == []
        assert await bus.jobs("node.one.more").fetch(1, wait=0.1) == []
        assert await fetch_all(bus, 1) == ["a"]

    async def test_a_job_waits_for_a_worker_that_comes_later(self, bus: Bus) -> None:
        await bus.publish(job_subject("late", "delete"), Note("a"), dedupe="a")
        await bus.ensure_queue("late")
        [delivery] = await bus.jobs("late").fetch(1, wait=2)
        await delivery.ack()

    async def test_a_waiting_fetch_hears_of_a_new_job(self, bus: Bus) -> None:
        fetching = asyncio.create_task(bus.jobs(NODE).fetch(5, wait=5))
        await asyncio.sleep(0.1)
        await publish_job(bus, "a")
        assert len(await fetching) == 1

    async def test_a_fetch_brings_all_that_lie_ready_up_to_its_count(self, bus: Bus) -> None:
        await asyncio.gather(*(publish_job(bus, str(number)) for number in range(25)))
        queue = bus.jobs(NODE)
        assert len(await queue.fetch(20, wait=2)) == 20
        assert len(await queue.fetch(20, wait=2)) == 5

    async def test_order_is_kept(self, bus: Bus) -> None:
        for number in range(10):
            await publish_job(bus, str(number))
        assert await fetch_all(bus, 10) == [str(number) for number in range(10)]

    async def test_a_repeated_publication_changes_nothing(self, bus: Bus) -> None:
        await publish_job(bus, "a", dedupe="one")
        await publish_job(bus, "b", dedupe="one")
        await publish_job(bus, "c", dedupe="two")
        assert await fetch_all(bus, 2) == ["a", "c"]

    async def test_what_is_not_acknowledged_comes_again(self, bus: Bus) -> None:
        await publish_job(bus, "a")
        queue = bus.jobs(NODE)
        [first] = await queue.fetch(1, wait=2)
        [second] = await queue.fetch(1, wait=4)
        assert (first.times, second.times) == (1, 2)
        await second.ack()

    async def test_what_is_kept_alive_does_not_come_again(self, bus: Bus) -> None:
        await publish_job(bus, "a")
        queue = bus.jobs(NODE)
        [delivery] = await queue.fetch(1, wait=2)
        for _ in range(5):
            await asyncio.sleep(ACK_WAIT / 2)
            await delivery.keep()
        assert await queue.fetch(1, wait=0.1) == []
        await delivery.ack()

    async def test_later_means_again_after_a_while(self, bus: Bus) -> None:
        await publish_job(bus, "a")
        queue = bus.jobs(NODE)
        [delivery] = await queue.fetch(1, wait=2)
        await delivery.later(0.4)
        assert await queue.fetch(1, wait=0.1) == []
        [again] = await queue.fetch(1, wait=3)
        assert again.times == 2
        await again.ack()

    async def test_what_is_dropped_never_comes_again(self, bus: Bus) -> None:
        await publish_job(bus, "a")
        queue = bus.jobs(NODE)
        [delivery] = await queue.fetch(1, wait=2)
        await delivery.drop()
        assert await queue.fetch(1, wait=ACK_WAIT * 1.5) == []

    async def test_a_fetch_given_up_loses_nothing(self, bus: Bus) -> None:
        queue = bus.jobs(NODE)
        fetching = asyncio.create_task(queue.fetch(5, wait=5))
        await asyncio.sleep(0.1)
        fetching.cancel()
        await asyncio.wait({fetching})
        await publish_job(bus, "a")
        [delivery] = await queue.fetch(1, wait=5)
        await delivery.ack()

    async def test_controllers_share_the_events(self, place: Place, bus: Bus) -> None:
        async with place.connected() as other:
            for number in range(20):
                subject = event_subject(NODE, "accepted")
                await bus.publish(subject, Note(str(number)), dedupe=str(number))
            seen = []
            for events in (bus.events(), other.events(), bus.events(), other.events()):
                for delivery in await events.fetch(5, wait=2):
                    seen.append(msgspec.json.decode(delivery.data)["text"])
                    await delivery.ack()
        assert sorted(seen, key=int) == [str(number) for number in range(20)]

    async def test_the_trace_travels_with_a_message(self, bus: Bus) -> None:
        with telemetry.span("outer"):
            wanted = telemetry.trace_id()
            await publish_job(bus, "a")
        [delivery] = await bus.jobs(NODE).fetch(1, wait=2)
        with telemetry.continuing(delivery.headers):
            assert telemetry.trace_id() == wanted
        await delivery.ack()

    async def test_too_many_in_flight_hold_up_nobody_for_long(self, bus: Bus) -> None:
        await asyncio.gather(*(publish_job(bus, str(number)) for number in range(1500)))
        queue = bus.jobs(NODE)
        held = await queue.fetch(1500, wait=1)
        assert len(held) >= 1000
        await asyncio.gather(*(delivery.ack() for delivery in held))
        assert len(set(await fetch_all(bus, 1500 - len(held)))) == 1500 - len(held)

    async def test_thousands_at_once(self, bus: Bus) -> None:
        await asyncio.gather(*(publish_job(bus, str(number)) for number in range(2000)))
        texts = await fetch_all(bus, 2000)
        assert sorted(texts, key=int) == [str(number) for number in range(2000)]


class TestTables:
    async def test_rows_come_back(self, bus: Bus) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        assert await table.get("k") is None
        revision = await table.create("k", Note("a"))
        row = await table.get("k")
        assert row is not None
        assert (row.key, row.value, row.revision) == ("k", Note("a"), revision)

    async def test_of_two_creations_one_wins(self, bus: Bus) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        results = await asyncio.gather(
            *(table.create("k", Note(text)) for text in "ab"), return_exceptions=True
        )
        assert sum(isinstance(result, Conflict) for result in results) == 1

    async def test_an_update_needs_the_current_revision(self, bus: Bus) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        first = await table.create("k", Note("a"))
        second = await table.update("k", Note("b"), first)
        assert second > first
        with pytest.raises(Conflict):
            await table.update("k", Note("c"), first)
        with pytest.raises(Conflict):
            await table.update("missing", Note("c"), second)
        row = await table.get("k")
        assert row is not None
        assert row.value == Note("b")

    async def test_put_overwrites(self, bus: Bus) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        await table.put("k", Note("a"))
        revision = await table.put("k", Note("b"))
        row = await table.get("k")
        assert row is not None
        assert (row.value, row.revision) == (Note("b"), revision)

    async def test_a_deleted_row_can_be_created_again(self, bus: Bus) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        await table.delete("k")
        first = await table.create("k", Note("a"))
        await table.delete("k")
        assert await table.get("k") is None
        assert await table.all() == {}
        assert await table.create("k", Note("b")) > first

    async def test_all_is_all(self, bus: Bus) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        assert await table.all() == {}
        wanted = {f"k{number}": Note(str(number)) for number in range(2500)}
        await asyncio.gather(*(table.create(key, value) for key, value in wanted.items()))
        assert {key: row.value for key, row in (await table.all()).items()} == wanted

    async def test_all_misses_nothing_while_others_write(self, bus: Bus) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        keys = {f"k{number}" for number in range(1200)}
        await asyncio.gather(*(table.put(key, Note("0")) for key in keys))
        stop = asyncio.Event()

        async def write() -> None:
            while not stop.is_set():
                await asyncio.gather(*(table.put(f"k{n}", Note("1")) for n in range(0, 1200, 40)))

        writing = asyncio.create_task(write())
        for _ in range(10):
            assert set(await table.all()) == keys
        stop.set()
        await writing

    async def test_what_was_written_since_is_told_once(self, bus: Bus) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        await asyncio.gather(*(table.put(f"k{number}", Note()) for number in range(1200)))
        rows, mark = await table.since(Mark())
        assert set(rows) == {f"k{number}" for number in range(1200)}
        assert await table.since(mark) == ({}, mark)

        revision = await table.put("k7", Note("again"))
        await table.delete("k8")
        rows, later = await table.since(mark)
        assert rows == {"k7": Row(key="k7", value=Note("again"), revision=revision)}
        assert await table.since(later) == ({}, later)

    async def test_all_of_a_bucket_that_was_made_anew_was_written_since(
        self, place: Place, bus: Bus
    ) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        for number in range(5):
            await table.put(f"old{number}", Note())
        _, mark = await table.since(Mark())
        await place.wipe(ACTIONS_BUCKET)
        with pytest.raises(TopologyMissing):
            await table.since(mark)
        await bus.ensure_topology()
        for number in range(7):
            await table.put(f"new{number}", Note())
        rows, _ = await table.since(mark)
        assert set(rows) == {f"new{number}" for number in range(7)}

    async def test_rows_that_do_not_decode_are_left_out(self, place: Place, bus: Bus) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        await table.create("good", Note("a"))
        await place.put_raw(ACTIONS_BUCKET, "bad", b"\xff{")
        assert set(await table.all()) == {"good"}

    @pytest.mark.parametrize("key", ["", ".a", "a.", "a..b", "a b", "a*", "a>", "ä"])
    async def test_a_key_no_server_takes_is_refused(self, bus: Bus, key: str) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        for operation in (table.get(key), table.put(key, Note()), table.delete(key)):
            with pytest.raises(ValueError, match="cannot be a key"):
                await operation

    async def test_changes_hint_at_written_and_deleted_rows(self, bus: Bus) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        async with table.changes() as keys:
            await table.put("a.b", Note())
            assert await anext(keys) == "a.b"
            await table.delete("a.b")
            assert await anext(keys) == "a.b"


class TestTelling:
    async def test_a_listener_hears_what_is_told(self, place: Place, bus: Bus) -> None:
        async with place.connected() as other, other.listen(cancel_subject(NODE)) as heard:
            await bus.tell(cancel_subject(NODE), Cancel(action="a"))
            assert msgspec.json.decode(await anext(heard), type=Cancel) == Cancel(action="a")

    async def test_nobody_needs_to_listen(self, bus: Bus) -> None:
        await bus.tell(cancel_subject(NODE), Cancel(action="a"))


class TestBadLuck:
    async def test_everything_too_large_is_refused(self, bus: Bus) -> None:
        large = Note("x" * MAX_MESSAGE_BYTES)
        with pytest.raises(TooLarge):
            await bus.publish(job_subject(NODE, "delete"), large, dedupe="a")
        with pytest.raises(TooLarge):
            await bus.tell(cancel_subject(NODE), large)
        with pytest.raises(TooLarge):
            await bus.table(ACTIONS_BUCKET, Note).put("k", large)

    async def test_the_largest_message_passes(self, bus: Bus) -> None:
        largest = Note("x" * (MAX_MESSAGE_BYTES - len(msgspec.json.encode(Note()))))
        await bus.publish(job_subject(NODE, "delete"), largest, dedupe="a")
        await bus.table(ACTIONS_BUCKET, Note).put("k", largest)
        assert await fetch_all(bus, 1) == [largest.text]

    async def test_a_missing_topology_is_told_and_healed(self, place: Place) -> None:
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

    async def test_a_wiped_stream_ends_the_wait_and_is_healed(self, place: Place, bus: Bus) -> None:
        queue = bus.jobs(NODE)
        fetching = asyncio.create_task(queue.fetch(1, wait=5))
        await asyncio.sleep(0.1)
        await place.wipe(JOBS_STREAM)
        with pytest.raises(QueueMissing):
            await fetching
        with pytest.raises(TopologyMissing):
            await publish_job(bus, "a")
        await bus.ensure_topology()
        await bus.ensure_queue(NODE)
        await publish_job(bus, "a")
        [delivery] = await queue.fetch(1, wait=5)
        await delivery.ack()

    async def test_a_row_of_a_wiped_bucket_is_not_taken_for_a_new_one(
        self, place: Place, bus: Bus
    ) -> None:
        table = bus.table(ACTIONS_BUCKET, Note)
        for text in ("old", "new"):
            await table.create("k", Note(text))
            assert {key: row.value for key, row in (await table.all()).items()} == {"k": Note(text)}
            await place.wipe(ACTIONS_BUCKET)
            await bus.ensure_topology()

    async def test_wiped_events_and_buckets_are_healed(self, place: Place, bus: Bus) -> None:
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
        self, place: Place, bus: Bus
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

    async def test_a_wait_ends_when_the_connection_is_lost(self, place: Place, bus: Bus) -> None:
        fetching = asyncio.create_task(bus.jobs(NODE).fetch(1, wait=5))
        await asyncio.sleep(0.1)
        await place.down()
        with pytest.raises(BusUnavailable):
            await fetching

    async def test_listeners_and_hints_come_back_with_the_connection(self, place: Place) -> None:
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(place.connected())
            other = await stack.enter_async_context(place.connected())
            heard = await stack.enter_async_context(other.listen(cancel_subject(NODE)))
            await place.down()
            await place.up()
            hearing = asyncio.ensure_future(anext(heard))
            async with asyncio.timeout(20):
                while not hearing.done():
                    if bus.connected:
                        await bus.tell(cancel_subject(NODE), Cancel(action="a"))
                    await asyncio.sleep(0.05)
            assert msgspec.json.decode(await hearing, type=Cancel).action == "a"
