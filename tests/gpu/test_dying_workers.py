"""A worker is killed (SIGKILL) around every act that touches the GPU: the next one finds a
container that runs on with its data, or one that is ended and safe on disk."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from node_worker.executor import Point
from node_worker.gpu.port import GpuState
from schemas import reasons
from schemas.messages import EventKind
from schemas.orders import CheckpointOrder, Place, RestoreOrder, only_part
from tests.support.crash_house import CONTAINER, TARGET, checkpoint_order
from tests.support.crashing_worker import Fate
from tests.support.gpu_house import Counting, GpuHouse

DOWN = [
    *(("lock", point) for point in (Point.DONE, Point.DONE_RECORDED)),
    *(("gpu", point) for point in (Point.BEFORE_DO, Point.DONE, Point.DONE_RECORDED)),
    ("pause", Point.DONE_RECORDED),
    ("dump", Point.DONE),
    ("seal", Point.BEFORE_DO),
]
UP = [
    ("start", Point.DONE),
    *(("gpu", point) for point in (Point.BEFORE_DO, Point.DONE, Point.DONE_RECORDED)),
]

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("gpu_dying_workers"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def counting(house: GpuHouse) -> AsyncIterator[Counting]:
    """One for the whole table: to load PyTorch takes a while."""
    yield await house.counting(CONTAINER)


async def runs_on(house: GpuHouse, counting: Counting) -> None:
    await house.runs(counting)
    assert await house.gpu.state(await house.pid(CONTAINER)) is GpuState.RUNNING
    assert await house.in_use() >= house.kind.gib * (1 << 30)


@pytest.mark.parametrize(("step", "point"), DOWN)
async def test_on_the_way_down(
    house: GpuHouse, counting: Counting, step: str, point: Point
) -> None:
    counting.stand()
    order = checkpoint_order(leave_running=False)

    event = await house.house.dies(order, Fate(dies=(step, point)))

    assert event.failure
    assert event.failure.reason == reasons.WORKER_RESTARTED
    assert not house.house.is_durable(order.checkpoint)
    house.house.nothing_lies_around()
    await runs_on(house, counting)


@pytest.mark.parametrize(("step", "point"), [("gpu", Point.DONE), ("pause", Point.DONE_RECORDED)])
async def test_on_the_way_into_host_memory(
    house: GpuHouse, counting: Counting, step: str, point: Point
) -> None:
    counting.stand()
    order = CheckpointOrder(
        parts=only_part(TARGET),
        checkpoint=checkpoint_order(leave_running=False).checkpoint,
        place=Place.MEMORY,
    )

    event = await house.house.dies(order, Fate(dies=(step, point)))

    assert event.failure
    assert event.failure.reason == reasons.WORKER_RESTARTED
    await runs_on(house, counting)


async def test_once_it_is_durable_and_on_the_way_up(house: GpuHouse, counting: Counting) -> None:
    down = checkpoint_order(leave_running=False)
    event = await house.house.dies(down, Fate(dies=("seal", Point.DONE)))
    assert event.kind is EventKind.COMPLETED
    assert await house.house.status() is None
    assert not await house.in_use()
    counting.stand()

    up = RestoreOrder(checkpoint=down.checkpoint, part=CONTAINER, target=TARGET)
    for step, point in UP:
        event = await house.house.dies(up, Fate(dies=(step, point)))
        house.house.nothing_lies_around()
        if step == "gpu" and point is not Point.BEFORE_DO:
            assert event.kind is EventKind.COMPLETED, event.failure
            await runs_on(house, counting)
            await house.kill(counting)
        else:
            assert event.kind is EventKind.FAILED
            assert await house.house.status() is None
            assert not await house.in_use()
        assert house.house.is_durable(down.checkpoint)
