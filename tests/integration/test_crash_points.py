"""A real worker on a real containerd, killed (SIGKILL) around every act of every step and around
its record, on the way there and on the way back. The next worker finds what it left: afterwards
the container runs on as before, or its checkpoint is durable and it is ended.

One containerd, one NATS and one container serve the whole table; every case restores what it
needs, so that any of them can run alone.
"""

from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from kybernate.embedded.workload import NAMESPACE, SNAPSHOTTER
from node_worker.containerd.port import TaskStatus
from node_worker.executor import Point
from schemas import reasons
from schemas.messages import EventKind, JobEvent
from schemas.orders import DeleteOrder, RestoreOrder
from schemas.pods import PodRecord
from tests.support.crash_house import CONTAINER, TARGET, House, checkpoint_order, crash_house
from tests.support.crashing_worker import Fate

DO_POINTS = (Point.BEFORE_DO, Point.DONE, Point.DONE_RECORDED)
UNDO_POINTS = (Point.BEFORE_UNDO, Point.UNDONE, Point.UNDONE_RECORDED)
CHECKPOINT = (
    *("resolve", "preflight", "stage", "lock", "gpu", "pause"),
    *("dump", "rootfs", "hash", "seal", "release"),
)
RESTORE = (
    *("resolve", "fit", "verify", "prepare", "create"),
    *("memory", "start", "gpu", "settle"),
)
POD = PodRecord(namespace="default", name="counter", uid="u", node="crashing", template="{}")

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house() -> AsyncIterator[House]:
    async with crash_house() as house:
        yield house


@pytest.mark.parametrize("point", DO_POINTS)
@pytest.mark.parametrize("step", CHECKPOINT)
@pytest.mark.parametrize("leave_running", [True, False])
async def test_checkpoint(
    house: House,
    step: str,
    point: Point,
    leave_running: bool,  # noqa: FBT001
) -> None:
    await house.running()
    order = checkpoint_order(leave_running=leave_running)
    event = await house.dies(order, Fate(dies=(step, point)))
    committed = step == "release" or (step == "seal" and point is not Point.BEFORE_DO)
    assert house.is_durable(order.checkpoint) == committed
    house.nothing_lies_around()
    if committed:
        assert event.kind is EventKind.COMPLETED
    else:
        assert event.failure is not None
        assert event.failure.reason == reasons.WORKER_RESTARTED
    if committed and not leave_running:
        assert await house.status() is None
    else:
        await house.counts_on()


@pytest.mark.parametrize("point", DO_POINTS)
@pytest.mark.parametrize("step", ["seal", "retire", "release"])
@pytest.mark.parametrize("kubelet", [True, False])
async def test_a_checkpoint_whose_pod_is_to_go(
    house: House,
    step: str,
    point: Point,
    kubelet: bool,  # noqa: FBT001
) -> None:
    """`kubelet`: somebody ends the container while no worker runs; else the next worker does."""
    await house.running()
    order = msgspec.structs.replace(checkpoint_order(leave_running=False), pod=POD)
    job = await house.dead(order, Fate(dies=(step, point)))
    if kubelet:
        await house.ended_by_kubelet()
    event = await house.ended_by_the_next(job)
    committed = (step, point) != ("seal", Point.BEFORE_DO)
    assert house.is_durable(order.checkpoint) == committed
    house.nothing_lies_around()
    assert event.kind is (EventKind.COMPLETED if committed else EventKind.FAILED)
    if committed or kubelet:
        assert await house.status() is (None if kubelet else TaskStatus.STOPPED)
    else:
        await house.counts_on()


@pytest.mark.parametrize("point", UNDO_POINTS)
@pytest.mark.parametrize("step", CHECKPOINT[:-1])
async def test_the_way_back_of_a_checkpoint(house: House, step: str, point: Point) -> None:
    await house.running()
    order = checkpoint_order(leave_running=False)
    fate = Fate(fails=("seal", Point.BEFORE_DO), dies=(step, point))
    event = await house.dies(order, fate)
    assert event.kind is EventKind.FAILED
    assert not house.is_durable(order.checkpoint)
    house.nothing_lies_around()
    await house.counts_on()


@pytest.mark.parametrize("point", DO_POINTS)
@pytest.mark.parametrize("step", RESTORE)
async def test_restore(house: House, step: str, point: Point) -> None:
    checkpoint = await house.stopped()
    before = await house.runtime.container(NAMESPACE, CONTAINER)
    event = await house.dies(
        RestoreOrder(checkpoint=checkpoint, part=TARGET.container, target=TARGET),
        Fate(dies=(step, point)),
    )
    house.nothing_lies_around()
    if step in {"gpu", "settle"}:  # without a GPU, nothing was missing when the step began
        assert event.kind is EventKind.COMPLETED
        await house.counts_on()
    else:
        await assert_as_before(house, event, before)


@pytest.mark.parametrize("point", UNDO_POINTS)
@pytest.mark.parametrize("step", RESTORE[:-2])
async def test_the_way_back_of_a_restore(house: House, step: str, point: Point) -> None:
    checkpoint = await house.stopped()
    before = await house.runtime.container(NAMESPACE, CONTAINER)
    event = await house.dies(
        RestoreOrder(checkpoint=checkpoint, part=TARGET.container, target=TARGET),
        Fate(fails=("start", Point.DONE), dies=(step, point)),
    )
    house.nothing_lies_around()
    await assert_as_before(house, event, before)


async def assert_as_before(house: House, event: JobEvent, before: object) -> None:
    assert event.kind is EventKind.FAILED
    assert await house.status() is None
    container = await house.runtime.container(NAMESPACE, CONTAINER)
    assert container == before
    await house.runtime.snapshot(NAMESPACE, SNAPSHOTTER, container.snapshot_key)
    assert house.is_durable(house.checkpoint)


@pytest.mark.parametrize("point", DO_POINTS)
async def test_delete(house: House, point: Point) -> None:
    await house.running()
    order = checkpoint_order(leave_running=True)
    assert (await house.done(order)).kind is EventKind.COMPLETED
    event = await house.dies(DeleteOrder(checkpoint=order.checkpoint), Fate(dies=("delete", point)))
    there = point is Point.BEFORE_DO
    assert house.is_durable(order.checkpoint) == there
    assert event.kind is (EventKind.FAILED if there else EventKind.COMPLETED)
    house.nothing_lies_around()
