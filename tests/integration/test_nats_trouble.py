"""A NATS server that hangs, dies without a word, or loses its store."""

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats import connect as connect_to_nats
from nats.aio.msg import Msg

from kybernate.bus import Bus, BusSettings, BusUnavailable
from kybernate.bus.nats import connect
from kybernate.embedded.nats_server import NatsServer
from schemas.names import ACTIONS_BUCKET, EVENTS_STREAM, job_subject

NODE = "n"


class Note(msgspec.Struct, frozen=True):
    text: str = ""


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    async with connect(BusSettings(servers=(nats.url,)), name="test") as bus:
        await bus.ensure_topology()
        await bus.ensure_queue(NODE)
        yield bus


def publish(bus: Bus, text: str) -> Awaitable[None]:
    return bus.publish(job_subject(NODE, "delete"), Note(text), dedupe=text)


async def until_done(act: Callable[[], Awaitable[Any]]) -> None:
    """Again and again, as every caller does."""
    async with asyncio.timeout(60):
        while True:
            try:
                await act()
            except BusUnavailable:
                await asyncio.sleep(0.1)
            else:
                return


def signal_server(server: NatsServer, number: signal.Signals) -> None:
    assert server._process is not None
    os.kill(server._process.pid, number)


async def test_a_server_that_hangs_is_told_and_used_again(nats: NatsServer, bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    signal_server(nats, signal.SIGSTOP)
    try:
        results = await asyncio.gather(
            publish(bus, "a"),
            table.get("k"),
            table.all(),
            bus.ensure_topology(),
            bus.jobs(NODE).fetch(1, wait=1),
            return_exceptions=True,
        )
    finally:
        signal_server(nats, signal.SIGCONT)
    assert [type(result) for result in results] == [BusUnavailable] * 5
    await until_done(lambda: publish(bus, "a"))
    [delivery] = await bus.jobs(NODE).fetch(9, wait=5)
    await delivery.ack()


async def test_a_server_that_dies_without_a_word_keeps_what_it_confirmed(
    nats: NatsServer, bus: Bus
) -> None:
    await asyncio.gather(*(publish(bus, str(number)) for number in range(100)))
    await nats.kill()
    await nats.start()
    texts: set[str] = set()

    async def take() -> None:
        for delivery in await bus.jobs(NODE).fetch(100, wait=1):
            await delivery.ack()
            texts.add(msgspec.json.decode(delivery.data, type=Note).text)

    async with asyncio.timeout(60):
        while len(texts) < 100:
            await until_done(take)
    assert texts == {str(number) for number in range(100)}


async def test_a_server_that_comes_back_with_an_empty_store_is_filled_again(
    nats: NatsServer, bus: Bus, folder: Path
) -> None:
    await publish(bus, "a")
    await nats.stop()
    shutil.rmtree(folder / "nats" / "jetstream")
    await nats.start()
    await until_done(bus.ensure_topology)
    await bus.ensure_queue(NODE)
    await publish(bus, "a")
    [delivery] = await bus.jobs(NODE).fetch(9, wait=5)
    await delivery.ack()
    assert await bus.table(ACTIONS_BUCKET, Note).all() == {}


async def test_publishing_through_a_restart_loses_and_doubles_nothing(
    nats: NatsServer, bus: Bus
) -> None:
    async def publish_all() -> None:
        for number in range(300):
            await until_done(partial(publish, bus, str(number)))

    publishing = asyncio.create_task(publish_all())
    await asyncio.sleep(0.05)
    await nats.stop()
    await nats.start()
    await publishing
    deliveries = []
    while fetched := await bus.jobs(NODE).fetch(400, wait=1):
        deliveries += fetched
        await asyncio.gather(*(delivery.ack() for delivery in fetched))
    texts = [msgspec.json.decode(one.data, type=Note).text for one in deliveries]
    assert sorted(texts, key=int) == [str(number) for number in range(300)]


async def test_what_an_operator_changed_is_put_right_where_it_matters(
    nats: NatsServer, bus: Bus
) -> None:
    client = await connect_to_nats(nats.url)
    manager = client.jsm()
    before = (await manager.stream_info(EVENTS_STREAM)).config
    await manager.update_stream(before.evolve(max_age=3600.0, description="mine"))
    await bus.ensure_topology()
    after = (await manager.stream_info(EVENTS_STREAM)).config
    assert (after.max_age, after.description) == (before.max_age, "mine")
    await client.close()


async def test_ensuring_again_changes_nothing(nats: NatsServer, bus: Bus) -> None:
    client = await connect_to_nats(nats.url)
    calls: list[str] = []

    async def note(message: Msg) -> None:
        calls.append(message.subject)

    await client.subscribe("$JS.API.>", cb=note)
    await client.flush()
    await bus.ensure_topology()
    await bus.ensure_queue(NODE)
    await until_heard(calls, 7)
    assert not [call for call in calls if "UPDATE" in call or "INFO" in call]
    await client.close()


async def until_heard(calls: list[str], count: int) -> None:
    async with asyncio.timeout(30):
        while len(calls) < count:  # noqa: ASYNC110 - a list tells nobody
            await asyncio.sleep(0.01)


async def test_a_server_that_is_not_there_is_told_by_name_and_cause() -> None:
    with socket.socket() as taken:  # and listens to nobody
        taken.bind(("127.0.0.1", 0))
        nobody = f"nats://127.0.0.1:{taken.getsockname()[1]}"
        async with connect(BusSettings(servers=(nobody,)), name="test") as bus:
            with pytest.raises(BusUnavailable) as told:
                await bus.ensure_topology()
    assert f"NATS cannot be reached at {nobody}: " in str(told.value)
    assert "Connect call failed" in str(told.value)
