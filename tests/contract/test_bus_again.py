"""What comes again on every bus when nobody has acknowledged it, and what does not."""

import asyncio
import time

import pytest

from kybernate.bus import Bus
from tests.support.buses import LONGEST_WAIT, NODE, publish_job

ACK_WAIT = 2.0


@pytest.fixture
def ack_wait() -> float:
    return ACK_WAIT


async def test_what_is_not_acknowledged_comes_again(bus: Bus) -> None:
    await publish_job(bus, "a")
    queue = bus.jobs(NODE)
    [first] = await queue.fetch(1, wait=LONGEST_WAIT)
    [second] = await queue.fetch(1, wait=LONGEST_WAIT)
    assert (first.times, second.times) == (1, 2)
    await second.ack()


async def test_what_is_kept_alive_does_not_come_again(bus: Bus) -> None:
    await publish_job(bus, "a")
    queue = bus.jobs(NODE)
    [delivery] = await queue.fetch(1, wait=LONGEST_WAIT)
    end = time.monotonic() + ACK_WAIT * 1.5
    while time.monotonic() < end:
        await asyncio.sleep(ACK_WAIT / 10)
        await delivery.keep()
    assert await queue.fetch(1, wait=0.1) == []
    await delivery.ack()


async def test_what_is_dropped_never_comes_again(bus: Bus) -> None:
    await publish_job(bus, "a")
    queue = bus.jobs(NODE)
    [delivery] = await queue.fetch(1, wait=LONGEST_WAIT)
    await delivery.drop()
    assert await queue.fetch(1, wait=ACK_WAIT * 1.5) == []
