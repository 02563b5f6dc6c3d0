"""One address before several servers, each connection to the next one that listens: a Service."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from kybernate.tasks import end


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
    turns, open_ones = itertools.cycle(ports), set[asyncio.Task[None]]()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        open_ones.add(task)
        try:
            there = await _connected(turns, len(ports))
            if there is not None:
                await _both_ways((reader, writer), there)
        finally:
            writer.close()
            open_ones.discard(task)

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in list(open_ones):
            await end(task)


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _connected(turns: "itertools.cycle[int]", tries: int) -> Ends | None:
    for port in itertools.islice(turns, tries):
        with suppress(OSError):
            return await asyncio.open_connection("127.0.0.1", port)
    return None


async def _both_ways(one: Ends, other: Ends) -> None:
    """Until either closes."""
    ways = [_pump(one[0], other[1]), _pump(other[0], one[1])]
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            await end(task)
        other[1].close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
