"""A bus under test, in memory and on a real NATS server: programs connect to it, and bad luck can
strike it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from kybernate.bus import Bus, BusSettings
from kybernate.bus.memory import MemoryBroker
from kybernate.bus.nats import connect
from kybernate.bus.topology import bucket_stream
from kybernate.embedded.nats_server import NatsServer
from schemas.names import ACTIONS_BUCKET, job_subject

NODE = "node.one"
LONGEST_WAIT = 5.0


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
    def __init__(self, server: NatsServer, *, ack_wait: float) -> None:
        settings = BusSettings(servers=(server.url,), ack_wait=ack_wait)
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


async def publish_job(bus: Bus, text: str, *, dedupe: str | None = None) -> None:
    await bus.publish(job_subject(NODE, "checkpoint"), Note(text), dedupe=dedupe or text)


async def fetch_all(bus: Bus, count: int) -> list[str]:
    """The texts of so many jobs of the node, each acknowledged."""
    queue = bus.jobs(NODE)
    texts: list[str] = []
    while len(texts) < count:
        deliveries = await queue.fetch(count - len(texts), wait=LONGEST_WAIT)
        texts += [msgspec.json.decode(one.data, type=Note).text for one in deliveries]
        await asyncio.gather(*(one.ack() for one in deliveries))
    return texts


async def until_connected(bus: Bus) -> None:
    async with asyncio.timeout(60):
        while not bus.connected:  # noqa: ASYNC110 - as a program would look
            await asyncio.sleep(0.05)
