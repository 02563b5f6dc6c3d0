"""One address before several servers, each connection to the next one that listens: a Service."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress


def free_ports(count: int) -> list[int]:
    """Free on the loopback a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@asynccontextmanager
async def balanced(ports: Sequence[int]) -> AsyncIterator[int]:
    """The port that stands for all of them."""
    turns, forwarding = itertools.cycle(ports), set[asyncio.Task[None]]()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_forward((reader, writer), turns, len(ports)))
        forwarding.add(task)
        task.add_done_callback(forwarding.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await _ended(forwarding)


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _forward(one: Ends, turns: "itertools.cycle[int]", tries: int) -> None:
    try:
        if (other := await _connected(turns, tries)) is not None:
            await _both_ways(one, other)
    finally:
        one[1].close()


async def _connected(turns: "itertools.cycle[int]", tries: int) -> Ends | None:
    for port in itertools.islice(turns, tries):
        with suppress(OSError):
            return await asyncio.open_connection("127.0.0.1", port)
    return None


async def _both_ways(one: Ends, other: Ends) -> None:
    """Until either closes."""
    ways = {
        asyncio.create_task(_pump(one[0], other[1])),
        asyncio.create_task(_pump(other[0], one[1])),
    }
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        other[1].close()  # first: what follows can be called off
        await _ended(ways)


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
