"""A TCP relay that can go silent: what was connected hears nothing any more, as behind a firewall
that has forgotten a connection, and who connects meanwhile waits.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

BLOCK = 65536


class Relay:
    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._opened = asyncio.Event()
        self._opened.set()
        self._pairs: set[asyncio.Task[None]] = set()
        self.port = 0

    def cut(self) -> None:
        """Nothing passes; no connection is closed."""
        self._opened.clear()
        for pair in self._pairs:
            pair.cancel()

    def heal(self) -> None:
        """New connections pass; those of before stay silent."""
        self._opened.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._opened.wait()
        theirs, ours = await asyncio.open_connection(*self._target)
        pair = asyncio.create_task(_both_ways(reader, ours, theirs, writer))
        self._pairs.add(pair)
        try:
            await pair
        except asyncio.CancelledError:
            await asyncio.Event().wait()  # silent until the relay is closed
        finally:
            self._pairs.discard(pair)
            for each in (writer, ours):
                each.close()


async def _both_ways(
    reader: asyncio.StreamReader,
    ours: asyncio.StreamWriter,
    theirs: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_copy(reader, ours))
        tasks.create_task(_copy(theirs, writer))


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while block := await source.read(BLOCK):
            target.write(block)
            await target.drain()
        target.write_eof()


@contextlib.asynccontextmanager
async def relaying(host: str, port: int) -> AsyncIterator[Relay]:
    """A relay to that port, on another one of the same address."""
    relay = Relay(host, port)
    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(relay.serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(accept, host, 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
