"""Containers with memory on a GPU leave it as one checkpoint, and come back together."""

import uuid
from collections.abc import Sequence

import pytest

from kybernate.embedded.counting import shell_counter
from kybernate.embedded.workload import NAMESPACE
from node_worker.containerd.port import TaskStatus
from node_worker.executor import Point
from node_worker.gpu.port import GpuState
from schemas import reasons
from schemas.messages import EventKind
from schemas.orders import CheckpointOrder, Part, RestoreOrder, Target
from tests.support.crashing_worker import Fate
from tests.support.gpu_house import Counting, GpuHouse

NAMES = ("one", "two")

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("gpu_as_one"),
]


def target(name: str) -> Target:
    return Target(namespace=NAMESPACE, container=name)


def as_one(names: Sequence[str], *, independent: bool = False) -> CheckpointOrder:
    return CheckpointOrder(
        parts=tuple(Part(name=f"the-{name}", target=target(name)) for name in names),
        checkpoint=str(uuid.uuid4()),
        independent_gpu_processes=independent,
    )


async def leave(house: GpuHouse, order: CheckpointOrder, both: Sequence[Counting]) -> None:
    """Both are checkpointed, and are no more; nothing is left on the GPU."""
    event = await house.house.done(order)
    assert event.kind is EventKind.COMPLETED, event.failure
    for one in both:
        assert await house.house.status(one.name) is None
        one.stand()
    assert not await house.in_use()


async def come_back(house: GpuHouse, checkpoint: str, both: Sequence[Counting]) -> None:
    """Both are asked for at the same time."""
    orders = (
        RestoreOrder(checkpoint=checkpoint, part=f"the-{one.name}", target=target(one.name))
        for one in both
    )
    event = await house.house.done(*orders)
    assert event.kind is EventKind.COMPLETED, event.failure
    for one in both:
        await house.runs(one)


async def test_two_with_gpu_memory_leave_and_come_back_together(house: GpuHouse) -> None:
    both = [await house.counting(name) for name in NAMES]
    held = await house.in_use()
    assert held >= 2 * house.kind.gib * (1 << 30)
    order = as_one(NAMES, independent=True)

    await leave(house, order, both)
    await come_back(house, order.checkpoint, both)

    assert await house.in_use() >= 2 * house.kind.gib * (1 << 30)


async def test_one_with_gpu_memory_and_one_without(house: GpuHouse) -> None:
    both = [await house.counting("one"), await house.counting("two", shell_counter())]
    order = as_one(NAMES)

    await leave(house, order, both)
    await come_back(house, order.checkpoint, both)

    assert await house.in_use() >= house.kind.gib * (1 << 30)


async def test_both_are_off_the_gpu_and_paused_before_the_first_is_dumped(house: GpuHouse) -> None:
    both = [await house.counting(name) for name in NAMES]
    order = as_one(NAMES, independent=True)
    for one in both:
        one.stand()

    job = await house.house.dead(order, Fate(dies=("dump", Point.BEFORE_DO)))
    for name in NAMES:
        assert await house.house.status(name) is TaskStatus.PAUSED
    assert not await house.in_use()

    event = await house.house.ended_by_the_next(job)
    assert event.failure
    assert event.failure.reason == reasons.WORKER_RESTARTED
    for one in both:
        await house.runs(one)
        assert await house.gpu.state(await house.pid(one.name)) is GpuState.RUNNING


async def test_nobody_said_that_they_share_no_memory(house: GpuHouse) -> None:
    both = [await house.counting(name) for name in NAMES]

    event = await house.house.done(as_one(NAMES))

    assert event.failure
    assert event.failure.reason == reasons.GPU_SHARED_MEMORY
    for one in both:
        await house.runs(one)
