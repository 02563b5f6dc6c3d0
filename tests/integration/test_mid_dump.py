"""What dies in the middle of a dump, and of a restore: worker, containerd, CRIU, several at once.

Before the crash points' table it needs a container that takes a while to dump.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kybernate.embedded.oci import Workload
from kybernate.embedded.workload import NAMESPACE
from node_worker import criu_process
from node_worker.containerd.port import TaskStatus
from schemas import reasons
from schemas.messages import Cancel, EventKind
from schemas.names import cancel_subject
from schemas.orders import RestoreOrder
from tests.support.crash_house import (
    CONTAINER,
    NODE,
    TARGET,
    House,
    checkpoint_order,
    crash_house,
)
from tests.support.crashing_worker import Fate

LARGE = """
import time
memory = bytearray(b"x" * (300 << 20))
number = 0
while True:
    number += 1
    print(number, flush=True)
    time.sleep(0.02)
"""


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with crash_house() as house:
        workload = Workload(args=("-c", LARGE))
        large = await house.workloads.start_container(CONTAINER, workload, python=True)
        await large.wait_for_more(3)
        house.counters[CONTAINER] = large
        yield house


async def until(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not wanted():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.002)


def pages_are_written(house: House) -> bool:
    staged = Path(house.store.root, ".aside").glob("*/containers/*/images/pages-*.img")
    return any(path.stat().st_size > 1 << 20 for path in staged)


async def criu_restores(house: House) -> None:
    """Until it has begun, which its log tells sooner than a look at all processes does; a restore
    that is over before anybody has looked has cleared it away.
    """
    work = house.settings.state / "work"
    async with asyncio.timeout(60):
        while not list(work.glob("*/restore.log")):
            if await house.status() is TaskStatus.RUNNING:
                return
            await asyncio.sleep(0.002)


def criu(house: House) -> tuple[int, ...]:
    return criu_process.working_in(house.settings.state / "work")


async def processes_of_the_container(house: House) -> list[str]:
    container = await house.runtime.container(NAMESPACE, CONTAINER)
    cgroup = container.oci["linux"]["cgroupsPath"]
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # no process, or it ended just now
            if f"{cgroup}\n" in (process / "cgroup").read_text():
                found.append((process / "stat").read_text())
    return [stat for stat in found if stat.rpartition(")")[2].split()[0] not in "ZX"]


async def worker_dies(house: House) -> None:
    house.workers.kill()
    await house.workers.killed()
    await house.workers.start(Fate())


async def containerd_dies(house: House) -> None:
    await house.daemon.kill()
    await house.daemon.start()


async def both_die(house: House) -> None:
    await house.daemon.kill()
    await worker_dies(house)
    await house.daemon.start()


async def criu_dies(house: House) -> None:
    for pid in criu(house):
        os.kill(pid, signal.SIGKILL)


TROUBLE = {
    "worker": (worker_dies, {reasons.WORKER_RESTARTED}),
    "containerd": (containerd_dies, {reasons.RUNTIME_UNAVAILABLE}),
    "both": (both_die, {reasons.RUNTIME_UNAVAILABLE, reasons.WORKER_RESTARTED}),
    "criu": (criu_dies, {reasons.DUMP_FAILED}),
}


@pytest.mark.parametrize("who", TROUBLE)
async def test_dies_in_the_middle_of_a_dump(house: House, who: str) -> None:
    trouble, told = TROUBLE[who]
    await house.workers.start(Fate())
    order = checkpoint_order(leave_running=False)
    job = await house.publish(order)
    await until(lambda: pages_are_written(house))
    await trouble(house)
    event = await house.last_event(job)
    assert event.failure is not None
    assert event.failure.reason in told
    await house.counts_on()
    house.nothing_lies_around()
    assert criu(house) == ()
    await house.workers.stop()
    again = await house.done(checkpoint_order(leave_running=False))
    assert again.kind is EventKind.COMPLETED, again.failure


async def test_cancelled_in_the_middle_of_a_dump(house: House) -> None:
    await house.workers.start(Fate())
    job = await house.publish(checkpoint_order(leave_running=False))
    await until(lambda: pages_are_written(house))
    await house.bus.tell(cancel_subject(NODE), Cancel(action=job.action))
    assert (await house.last_event(job)).kind is EventKind.CANCELLED
    await house.counts_on()
    house.nothing_lies_around()
    assert criu(house) == ()
    await house.workers.stop()


@pytest.mark.parametrize(
    ("who", "late"), [("worker", 0.0), ("containerd", 0.0), ("containerd", 0.1), ("both", 0.05)]
)
async def test_dies_in_the_middle_of_a_restore(house: House, who: str, late: float) -> None:
    order = checkpoint_order(leave_running=False)
    assert (await house.done(order)).kind is EventKind.COMPLETED
    await house.workers.start(Fate())
    restore = RestoreOrder(checkpoint=order.checkpoint, part=TARGET.container, target=TARGET)
    job = await house.publish(restore)
    await criu_restores(house)
    await asyncio.sleep(late)
    await TROUBLE[who][0](house)
    event = await house.last_event(job)
    if event.kind is EventKind.COMPLETED:  # it was faster than the trouble
        await house.counts_on()
        return
    assert await house.status() is None
    house.nothing_lies_around()
    assert criu(house) == ()
    assert await processes_of_the_container(house) == []
    await house.workers.stop()
    again = await house.done(restore)
    assert again.kind is EventKind.COMPLETED, again.failure
    assert await house.status() is TaskStatus.RUNNING
    await house.counts_on()
