"""Jobs per second, Kybernate beside FastStream: `make bench-jobs`.

A job's way on both sides: its action is recorded in a bucket, the job is published into a work
queue, a worker fetches it, records it on its disk, does nothing, records that, publishes an event
into a stream, the job is acknowledged (confirmed by the server), the event is consumed, the status
is written into the bucket by compare-and-set, the event is acknowledged (confirmed).

Both sides run by turns, each in one process on one event loop, each round with a NATS server and
folders of its own. A round ends when all clients have seen the ends of their actions and both
consumers have nothing left to acknowledge; then the bucket is read from the server, and must have
every status.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import nats
from nats.js import JetStreamContext

from bench.jobs_faststream import through_faststream
from bench.jobs_kybernate import through_kybernate
from bench.jobs_side import NODE, Side, an_action
from kybernate import tasks
from kybernate.bus import BusSettings
from kybernate.bus.nats import connect
from kybernate.embedded.nats_server import nats_server
from schemas.actions import Action, ActionState
from schemas.names import (
    ACTIONS_BUCKET,
    CONTROLLERS,
    EVENTS_STREAM,
    JOBS_STREAM,
    worker_consumer,
)

JOBS = 2000
ROUNDS = 7
WARM_UP = 1
POLL_SECONDS = 0.002
CLIENTS = 128
"""Each asks for an action, waits for its end, and asks for the next."""

Open = Callable[[str, Path], AbstractAsyncContextManager[Side]]


async def timed_round(open_side: Open, jobs: int) -> float:
    """Jobs per second."""
    with tempfile.TemporaryDirectory(prefix="ky-", dir="/tmp") as name:
        folder = Path(name)
        async with nats_server(folder / "nats") as server:
            async with open_side(server.url, folder) as side:
                actions = [an_action() for _ in range(jobs)]
                began = time.monotonic()
                await complete_all(side, actions)
                await all_acknowledged(server.url)
                took = time.monotonic() - began
            await check(server.url, actions)
    return jobs / took


async def complete_all(side: Side, actions: list[Action]) -> None:
    waiting = iter(actions)

    async def client() -> None:
        for action in waiting:
            await side.complete(action)

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())


async def all_acknowledged(url: str) -> None:
    """Both consumers have nothing left."""
    client = await nats.connect(url)
    for stream, consumer in ((JOBS_STREAM, worker_consumer(NODE)), (EVENTS_STREAM, CONTROLLERS)):
        while await left(client.jetstream(), stream, consumer):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(POLL_SECONDS)
    await client.close()


async def left(stream_client: JetStreamContext, stream: str, consumer: str) -> int:
    info = await stream_client.consumer_info(stream, consumer)
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


async def check(url: str, actions: list[Action]) -> None:
    """Every status lies on the server."""
    async with connect(BusSettings(servers=(url,)), name="check") as bus:
        rows = await bus.table(ACTIONS_BUCKET, Action).all()
    unfinished = [one.id for one in actions if rows[one.id].value.state != ActionState.COMPLETED]
    if unfinished:
        raise AssertionError(f"{len(unfinished)} of {len(actions)} actions are not completed")


async def compare(rounds: int, jobs: int) -> None:
    ours, theirs = list[float](), list[float]()
    for number in range(rounds + WARM_UP):
        pair = (
            await timed_round(through_kybernate, jobs),
            await timed_round(through_faststream, jobs),
        )
        if number < WARM_UP:
            continue
        ours.append(pair[0])
        theirs.append(pair[1])
        print(f"round {number}: kybernate {pair[0]:6.0f}/s   faststream {pair[1]:6.0f}/s")
    medians = statistics.median(ours), statistics.median(theirs)
    print(f"medians: kybernate {medians[0]:6.0f}/s   faststream {medians[1]:6.0f}/s")
    result = {
        "rounds": rounds,
        "jobs": jobs,
        "kybernate_jobs_per_second": round(medians[0]),
        "faststream_jobs_per_second": round(medians[1]),
        "ratio": round(medians[0] / medians[1], 3),
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--jobs", type=int, default=JOBS)
    given = parser.parse_args()
    asyncio.run(tasks.run_until_signalled(compare(given.rounds, given.jobs)))


if __name__ == "__main__":
    main()
