"""Controllers side by side over a real NATS server, with a worker that does nothing really.

None of them is special: any may be killed at any moment, everything in NATS may be wiped, and
every event may come twice.
"""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import nats as nats_client
import pytest

from kybernate.bus import Bus, BusSettings
from kybernate.bus.nats import connect
from kybernate.bus.topology import bucket_stream
from kybernate.client import Client, client
from kybernate.embedded.nats_server import NatsServer
from schemas.actions import Action, ActionState
from schemas.checkpoints import CheckpointState
from schemas.names import (
    ACTIONS_BUCKET,
    CHECKPOINTS_BUCKET,
    EVENTS_STREAM,
    JOBS_STREAM,
    NODES_BUCKET,
)
from schemas.requests import CheckpointRequest
from tests.support.controller_process import controller_processes
from tests.support.controllers import controller, until
from tests.support.fake_worker import FakeWorker, failure, working

NODE = "one"
ASK = CheckpointRequest(container="counter")
SIDE_BY_SIDE = 3


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    async with connect(BusSettings(servers=(nats.url,)), name="test") as bus:
        await bus.ensure_topology()
        await bus.ensure_queue(NODE)
        yield bus


@pytest.fixture
async def three(nats: NatsServer) -> AsyncIterator[Client]:
    """A client of three controllers in this process, each with a connection of its own."""
    async with AsyncExitStack() as stack:
        urls = []
        for number in range(SIDE_BY_SIDE):
            settings = BusSettings(servers=(nats.url,))
            bus = await stack.enter_async_context(connect(settings, name=f"c{number}"))
            urls.append(await stack.enter_async_context(controller(bus)))
        yield await stack.enter_async_context(client(urls))


async def wipe(nats: NatsServer, name: str) -> None:
    """As an operator's slip of the hand would."""
    connection = await nats_client.connect(nats.url)
    stream = name if name in {JOBS_STREAM, EVENTS_STREAM} else bucket_stream(name)
    await connection.jetstream().delete_stream(stream)
    await connection.close()


async def known_node(asking: Client) -> None:
    await until(asking.nodes, lambda nodes: [node.node for node in nodes] == [NODE])


async def test_one_of_three_is_killed_while_they_work(
    nats: NatsServer, bus: Bus, folder: Path
) -> None:
    async with (
        controller_processes(nats.url, folder, SIDE_BY_SIDE) as processes,
        client([one.url for one in processes]) as asking,
        working(FakeWorker(bus, NODE, seconds=0.05)) as worker,
    ):
        await known_node(asking)

        async def go_round() -> ActionState:
            await asyncio.sleep(random.uniform(0, 1))  # noqa: S311 - no secret
            return (await asking.ended((await asking.request(ASK)).id)).state

        rounds = [asyncio.create_task(go_round()) for _ in range(60)]
        for process in processes[:-1]:
            await asyncio.sleep(0.4)
            await process.kill()
        states = await asyncio.gather(*rounds)
        assert Counter(states) == {ActionState.COMPLETED: 60}
        assert Counter(worker.done).most_common(1)[0][1] == 1
        ready = [entry.state for entry in await asking.checkpoints()]
        assert ready == [CheckpointState.READY] * 60


async def test_the_one_that_was_asked_is_killed_at_any_moment(
    nats: NatsServer, bus: Bus, folder: Path
) -> None:
    """Whatever the killed one left undone, the last one does."""
    moments = [0.0, 0.003, 0.02, 0.12]
    async with (
        controller_processes(nats.url, folder, len(moments) + 1) as processes,
        client([processes[-1].url]) as last,
        working(FakeWorker(bus, NODE, seconds=0.1)) as worker,
    ):
        await known_node(last)
        for process, moment in zip(processes, moments, strict=False):
            action = str(uuid.uuid4())
            async with client([process.url, processes[-1].url]) as asking:
                asked = asyncio.create_task(asking.request(ASK, action=action))
                await asyncio.sleep(moment)
                await process.kill()
                await asked
            ended = await last.ended(action)
            assert (ended.state, ended.attempt) == (ActionState.COMPLETED, 1)
        assert len(worker.done) == len(set(worker.done)) == len(moments)


async def test_a_controller_stops_in_order_and_a_watch_goes_on_elsewhere(
    nats: NatsServer, bus: Bus, folder: Path
) -> None:
    async with (
        controller_processes(nats.url, folder, 2) as processes,
        client([one.url for one in processes]) as asking,
        working(FakeWorker(bus, NODE)) as worker,
    ):
        await known_node(asking)
        worker.paused.clear()
        action = await asking.request(ASK)
        ended = asyncio.create_task(asking.ended(action.id))
        await asyncio.sleep(0.3)
        assert await processes[0].stop() == 0
        worker.paused.set()
        assert (await ended).state is ActionState.COMPLETED


@pytest.mark.parametrize(
    "name", [JOBS_STREAM, EVENTS_STREAM, ACTIONS_BUCKET, NODES_BUCKET, CHECKPOINTS_BUCKET]
)
async def test_unfinished_actions_converge_after_a_wipe(
    nats: NatsServer, bus: Bus, three: Client, name: str
) -> None:
    async with working(FakeWorker(bus, NODE, seconds=0.6)) as worker:
        await known_node(three)
        before = await three.ended((await three.request(ASK)).id)
        worker.paused.clear()
        waiting = [await three.request(ASK) for _ in range(4)]
        worker.paused.set()
        running = [await three.request(ASK) for _ in range(4)]
        await asyncio.sleep(0.3)
        await wipe(nats, name)
        wanted = [action.id for action in (*waiting, *running)]

        async def converged() -> bool:
            states = [(await three.action(action)).state for action in wanted]
            entries = {entry.facts.id for entry in await three.checkpoints()}
            done = all(state is ActionState.COMPLETED for state in states)
            return done and entries >= {before.id, *wanted}

        await until(converged, bool, every=0.2)
        await known_node(three)  # of a wiped bucket it is known again with its next heartbeat
        assert (await three.ended((await three.request(ASK)).id)).state is ActionState.COMPLETED


async def test_events_that_come_twice_and_failures_change_nothing(bus: Bus, three: Client) -> None:
    worker = FakeWorker(
        bus,
        NODE,
        repeats=2,
        fails=lambda job: failure(retriable=True) if job.attempt == 1 else None,
    )
    async with working(worker):
        await known_node(three)
        asked = [await three.request(ASK) for _ in range(20)]
        ended = await asyncio.gather(*(three.ended(action.id) for action in asked))
    assert {(one.state, one.attempt) for one in ended} == {(ActionState.COMPLETED, 2)}
    assert len(worker.done) == len(set(worker.done)) == 2 * len(asked)
    for action in asked:  # another controller may still have a step to add
        await until(partial(three.action, action.id), all_steps_are_told)


def all_steps_are_told(action: Action) -> bool:
    told = [(step.step, step.seconds is None) for step in action.steps]
    return told == [("resolve", False), ("dump", False), ("seal", False)]


async def test_nats_stops_for_a_while_in_the_middle_of_a_job(
    nats: NatsServer, bus: Bus, three: Client
) -> None:
    async with working(FakeWorker(bus, NODE, seconds=1.0)):
        await known_node(three)
        action = await three.request(ASK)
        ended = asyncio.create_task(three.ended(action.id))
        await asyncio.sleep(0.4)
        await nats.stop()
        await asyncio.sleep(3)
        await nats.start()
        assert (await ended).state is ActionState.COMPLETED
