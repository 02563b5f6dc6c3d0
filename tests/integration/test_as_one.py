"""Two real containers as one checkpoint: whatever dies, both are in it, or both run on."""

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kybernate.embedded.workload import NAMESPACE, end_task
from node_worker.executor import Point
from schemas.messages import EventKind
from schemas.orders import CheckpointOrder, Part, RestoreOrder, Target
from tests.support.crash_house import BESIDE, CONTAINER, House, crash_house
from tests.support.crashing_worker import Fate

NAMES = (CONTAINER, BESIDE)
POINTS = (Point.BEFORE_DO, Point.DONE_RECORDED)
STEPS = (
    *("resolve", "preflight", "stage", "lock", "gpu", "pause"),
    *("dump", "rootfs", "hash", "seal", "release"),
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("as_one")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house() -> AsyncIterator[House]:
    async with crash_house() as house:
        yield house


def target(name: str) -> Target:
    return Target(namespace=NAMESPACE, container=name)


def checkpoint_of_both(*, leave_running: bool = False) -> CheckpointOrder:
    return CheckpointOrder(
        parts=tuple(Part(name=f"the-{name}", target=target(name)) for name in NAMES),
        checkpoint=str(uuid.uuid4()),
        leave_running=leave_running,
    )


async def test_each_goes_on_where_it_stood(house: House) -> None:
    for name in NAMES:
        await house.running(name)
    order = checkpoint_of_both()
    event = await house.done(order)
    assert event.kind is EventKind.COMPLETED, event.failure
    assert house.is_durable(order.checkpoint)
    assert [await house.status(name) for name in NAMES] == [None, None]
    for name in reversed(NAMES):
        back = RestoreOrder(checkpoint=order.checkpoint, part=f"the-{name}", target=target(name))
        event = await house.done(back)
        assert event.kind is EventKind.COMPLETED, event.failure
        await house.counts_on(name)
    house.nothing_lies_around()


async def test_one_that_has_ended_stands_in_the_way_of_both(house: House) -> None:
    for name in NAMES:
        await house.running(name)
    await end_task(house.runtime, BESIDE)
    order = checkpoint_of_both()
    event = await house.done(order)
    assert event.kind is EventKind.FAILED
    assert not house.is_durable(order.checkpoint)
    await house.counts_on(CONTAINER)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step", STEPS)
async def test_the_worker_dies(house: House, step: str, point: Point) -> None:
    for name in NAMES:
        await house.running(name)
    order = checkpoint_of_both()
    event = await house.dies(order, Fate(dies=(step, point)))
    committed = step == "release" or (step == "seal" and point is not Point.BEFORE_DO)
    assert event.kind is (EventKind.COMPLETED if committed else EventKind.FAILED)
    assert house.is_durable(order.checkpoint) == committed
    house.nothing_lies_around()
    for name in NAMES:
        if committed:
            assert await house.status(name) is None
        else:
            await house.counts_on(name)
