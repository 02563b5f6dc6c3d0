"""The bus on NATS with JetStream (server 2.11 or newer)."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import msgspec

from kybernate import telemetry
from kybernate.bus.link import Link
from kybernate.bus.nats_queue import NatsQueue
from kybernate.bus.nats_table import NatsTable
from kybernate.bus.opening import check
from kybernate.bus.port import Bus, BusSettings, BusUnavailable, Queue, Table
from kybernate.bus.publishing import check_size, publish
from kybernate.bus.topology import ensure_consumer, ensure_topology, node_consumer
from kybernate.tasks import end
from schemas.base import encode
from schemas.names import CONTROLLERS, EVENTS_STREAM, JOBS_STREAM, worker_consumer

T = TypeVar("T")
log = logging.getLogger(__name__)

_DEDUPE = "Nats-Msg-Id"


class NatsBus:
    def __init__(self, link: Link, lifetime: AsyncExitStack, *, ack_wait: float) -> None:
        self._link = link
        self._lifetime = lifetime
        self._ack_wait = ack_wait
        self._queues: dict[tuple[str, str], NatsQueue] = {}

    @property
    def connected(self) -> bool:
        return self._link.connected

    async def ensure_topology(self) -> None:
        await ensure_topology(self._link, ack_wait=self._ack_wait)

    async def ensure_queue(self, node: str) -> None:
        await ensure_consumer(self._link, JOBS_STREAM, node_consumer(node, self._ack_wait))

    async def publish(self, subject: str, message: msgspec.Struct, *, dedupe: str) -> None:
        payload = encode(message)
        check_size(subject, payload)
        await publish(self._link, subject, payload, telemetry.inject({_DEDUPE: dedupe}))

    async def tell(self, subject: str, message: msgspec.Struct) -> None:
        payload = encode(message)
        check_size(subject, payload)
        await self._link.send(subject, payload)

    @asynccontextmanager
    async def listen(self, subject: str) -> AsyncIterator[AsyncIterator[bytes]]:
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        async with self._link.listening(subject, lambda message: heard.put_nowait(message.data)):
            yield _each(heard)

    def jobs(self, node: str) -> Queue:
        return self._queue(JOBS_STREAM, worker_consumer(node))

    def events(self) -> Queue:
        return self._queue(EVENTS_STREAM, CONTROLLERS)

    def table(self, bucket: str, of: type[T]) -> Table[T]:
        return NatsTable(self._link, bucket, of)

    def _queue(self, stream: str, consumer: str) -> NatsQueue:
        """One for each consumer, as each keeps a subscription."""
        if (stream, consumer) not in self._queues:
            queue = NatsQueue(self._link, self._lifetime, stream=stream, consumer=consumer)
            self._queues[stream, consumer] = queue
        return self._queues[stream, consumer]


async def _each(heard: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
    while True:
        yield await heard.get()


@asynccontextmanager
async def connect(settings: BusSettings, *, name: str) -> AsyncIterator[Bus]:
    """A bus for as long as the block runs.

    NATS may be down: the block is entered after a few seconds nevertheless, and the bus works
    once NATS does. Refused credentials raise NotPermitted, settings that cannot be right
    CannotServe.
    """
    check(settings)
    link = Link(settings, name)
    serving = asyncio.create_task(link.serve(), name=f"NATS link of {name}")
    try:
        try:
            await link.ready()
        except BusUnavailable as error:
            log.warning("going on without NATS until it is there: %s", error)
        async with AsyncExitStack() as lifetime:
            yield NatsBus(link, lifetime, ack_wait=settings.ack_wait)
    finally:
        await end(serving)
