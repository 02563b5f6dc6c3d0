"""The bus without a server: everything in one process, for fast tests.

A MemoryBroker stands for the NATS server and holds what it would hold; each MemoryBus is one
program's connection to it. The broker brings bad luck on demand: a lost connection, a
confirmation that gets lost after the deed, a message handed out twice, a wiped stream or bucket.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import msgspec

from kybernate import telemetry
from kybernate.bus.memory_stream import Consumer, MemoryStream, Stored, matches
from kybernate.bus.port import (
    ACK_WAIT_SECONDS,
    BusUnavailable,
    Change,
    Conflict,
    Delivery,
    Mark,
    Queue,
    QueueMissing,
    Row,
    Table,
    TopologyMissing,
    check_key,
)
from kybernate.bus.publishing import check_size
from schemas.base import Undecodable, decode, encode
from schemas.names import (
    BUCKETS,
    CONTROLLERS,
    EVENT_SUBJECTS,
    EVENTS_STREAM,
    JOB_SUBJECTS,
    JOBS_STREAM,
    job_subjects_of,
    worker_consumer,
)

T = TypeVar("T")


class MemoryBroker:
    def __init__(self, *, ack_wait: float = ACK_WAIT_SECONDS) -> None:
        self.streams: dict[str, MemoryStream] = {}
        self.buckets: dict[str, dict[str, tuple[int, bytes]]] = {}
        self.ack_wait = ack_wait
        self._listeners: list[tuple[str, asyncio.Queue[tuple[str, bytes]]]] = []
        self._connected = True
        self._lost_acks = 0
        self._revision = 0

    def bus(self) -> "MemoryBus":
        return MemoryBus(self)

    @property
    def connected(self) -> bool:
        return self._connected

    def disconnect(self) -> None:
        self._connected = False
        for stream in self.streams.values():
            stream.wake()

    def reconnect(self) -> None:
        self._connected = True

    def lose_acks(self, count: int = 1) -> None:
        """The next operations are done, but whoever asked hears BusUnavailable."""
        self._lost_acks = count

    def duplicate(self, count: int = 1) -> None:
        """The next deliveries are handed out once more, right after."""
        for stream in self.streams.values():
            stream.duplicates = count

    def wipe(self, name: str) -> None:
        """Remove a stream with its consumers, or a bucket."""
        self.buckets.pop(name, None)
        if stream := self.streams.pop(name, None):
            stream.wake()

    def check(self) -> None:
        if not self._connected:
            raise BusUnavailable("the in-memory broker is disconnected")

    def confirm(self) -> None:
        if self._lost_acks:
            self._lost_acks -= 1
            raise BusUnavailable("the confirmation got lost")

    def ensure(self) -> None:
        for name, subjects, once in (
            (JOBS_STREAM, JOB_SUBJECTS, True),
            (EVENTS_STREAM, EVENT_SUBJECTS, False),
        ):
            if name not in self.streams:
                self.streams[name] = MemoryStream(subjects, once=once, ack_wait=self.ack_wait)
        self.streams[EVENTS_STREAM].ensure(CONTROLLERS, ">")
        for name in BUCKETS:
            self.buckets.setdefault(name, {})

    def stream_of(self, subject: str) -> MemoryStream:
        for stream in self.streams.values():
            if matches(stream.subjects, subject):
                return stream
        raise TopologyMissing(f"no stream takes {subject}")

    def bucket(self, name: str) -> dict[str, tuple[int, bytes]]:
        self.check()
        try:
            return self.buckets[name]
        except KeyError:
            raise TopologyMissing(f"the bucket {name} does not exist") from None

    def write(self, bucket: str, key: str, payload: bytes | None) -> int:
        rows = self.bucket(bucket)
        self._revision += 1
        rows.pop(key, None)
        if payload is not None:
            rows[key] = (self._revision, payload)
        written = 0 if payload is None else self._revision
        self.tell(_changed(bucket, key), str(written).encode())
        self.confirm()
        return self._revision

    def tell(self, subject: str, payload: bytes) -> None:
        for pattern, heard in self._listeners:
            if matches(pattern, subject):
                heard.put_nowait((subject, payload))

    @asynccontextmanager
    async def listening(self, pattern: str) -> AsyncIterator[asyncio.Queue[tuple[str, bytes]]]:
        self.check()
        heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._listeners.append((pattern, heard))
        try:
            yield heard
        finally:
            self._listeners.remove((pattern, heard))


class MemoryDelivery:
    def __init__(
        self, broker: MemoryBroker, consumer: Consumer, stored: Stored, times: int
    ) -> None:
        self._broker = broker
        self._consumer = consumer
        self._stored = stored
        self.times = times

    @property
    def subject(self) -> str:
        return self._stored.subject

    @property
    def data(self) -> bytes:
        return self._stored.data

    @property
    def headers(self) -> Mapping[str, str]:
        return self._stored.headers

    async def ack(self) -> None:
        self._broker.check()
        self._consumer.done(self._stored)
        self._broker.confirm()

    async def keep(self) -> None:
        self._broker.check()
        self._consumer.again_after(self._stored, self._broker.ack_wait)

    async def later(self, seconds: float) -> None:
        self._broker.check()
        self._consumer.again_after(self._stored, seconds)

    async def drop(self) -> None:
        self._broker.check()
        self._consumer.done(self._stored)


class MemoryQueue:
    def __init__(self, broker: MemoryBroker, stream: str, consumer: str) -> None:
        self._broker = broker
        self._stream = stream
        self._name = consumer

    async def fetch(self, count: int, *, wait: float) -> list[Delivery]:
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        while True:
            consumer = self._consumer()
            taken = consumer.take(count)
            left = until - loop.time()
            if taken or left <= 0:
                return [MemoryDelivery(self._broker, consumer, *one) for one in taken]
            await consumer.something(left)

    def _consumer(self) -> Consumer:
        self._broker.check()
        stream = self._broker.streams.get(self._stream)
        consumer = stream.consumers.get(self._name) if stream else None
        if consumer is None:
            raise QueueMissing(f"the queue {self._stream}/{self._name} does not exist")
        return consumer


class MemoryTable(Generic[T]):
    def __init__(self, broker: MemoryBroker, bucket: str, of: type[T]) -> None:
        self._broker = broker
        self._bucket = bucket
        self._of = of

    async def get(self, key: str) -> Row[T] | None:
        check_key(key)
        await asyncio.sleep(0)
        found = self._broker.bucket(self._bucket).get(key)
        if found is None:
            return None
        return Row(key=key, value=decode(found[1], self._of), revision=found[0])

    async def create(self, key: str, value: T) -> int:
        return await self._write(key, value, 0)

    async def update(self, key: str, value: T, revision: int) -> int:
        return await self._write(key, value, revision)

    async def put(self, key: str, value: T) -> int:
        return await self._write(key, value, None)

    async def delete(self, key: str) -> None:
        check_key(key)
        await asyncio.sleep(0)
        self._broker.write(self._bucket, key, None)

    async def all(self) -> dict[str, Row[T]]:
        await asyncio.sleep(0)
        rows: dict[str, Row[T]] = {}
        for key, (revision, payload) in self._broker.bucket(self._bucket).items():
            try:
                rows[key] = Row(key=key, value=decode(payload, self._of), revision=revision)
            except Undecodable:
                continue
        return rows

    async def since(self, mark: Mark) -> tuple[dict[str, Row[T]], Mark]:
        """The broker counts revisions on when a bucket is wiped."""
        rows = await self.all()
        newer = {key: row for key, row in rows.items() if row.revision > mark.revision}
        last = max((row.revision for row in newer.values()), default=mark.revision)
        return newer, Mark(revision=last)

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[Change]]:
        prefix = len(_changed(self._bucket, ""))
        async with self._broker.listening(_changed(self._bucket, ">")) as heard:
            yield _changes(heard, prefix)

    async def _write(self, key: str, value: T, expected: int | None) -> int:
        check_key(key)
        payload = encode(value)  # type: ignore[arg-type] # every T of a table is a struct
        check_size(key, payload)
        await asyncio.sleep(0)
        revision, _ = self._broker.bucket(self._bucket).get(key, (0, b""))
        if expected is not None and revision != expected:
            raise Conflict(f"{key} of {self._bucket} is at {revision}, not at {expected}")
        return self._broker.write(self._bucket, key, payload)


class MemoryBus:
    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    @property
    def connected(self) -> bool:
        return self._broker.connected

    async def ensure_topology(self) -> None:
        self._broker.check()
        self._broker.ensure()

    async def ensure_queue(self, node: str) -> None:
        self._broker.check()
        stream = self._broker.streams.get(JOBS_STREAM)
        if stream is None:
            raise TopologyMissing(f"the stream {JOBS_STREAM} does not exist")
        stream.ensure(worker_consumer(node), job_subjects_of(node))

    async def publish(self, subject: str, message: msgspec.Struct, *, dedupe: str) -> None:
        payload = encode(message)
        check_size(subject, payload)
        await asyncio.sleep(0)
        self._broker.check()
        self._broker.stream_of(subject).add(subject, payload, telemetry.inject({}), dedupe)
        self._broker.confirm()

    async def tell(self, subject: str, message: msgspec.Struct) -> None:
        payload = encode(message)
        check_size(subject, payload)
        self._broker.check()
        self._broker.tell(subject, payload)

    @asynccontextmanager
    async def listen(self, subject: str) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self._broker.listening(subject) as heard:
            yield _payloads(heard)

    def jobs(self, node: str) -> Queue:
        return MemoryQueue(self._broker, JOBS_STREAM, worker_consumer(node))

    def events(self) -> Queue:
        return MemoryQueue(self._broker, EVENTS_STREAM, CONTROLLERS)

    def table(self, bucket: str, of: type[T]) -> Table[T]:
        return MemoryTable(self._broker, bucket, of)


def _changed(bucket: str, key: str) -> str:
    return f"kybernate.changed.{bucket}.{key}"


async def _changes(heard: asyncio.Queue[tuple[str, bytes]], prefix: int) -> AsyncIterator[Change]:
    while True:
        subject, revision = await heard.get()
        yield Change(key=subject[prefix:], revision=int(revision))


async def _payloads(heard: asyncio.Queue[tuple[str, bytes]]) -> AsyncIterator[bytes]:
    while True:
        yield (await heard.get())[1]
