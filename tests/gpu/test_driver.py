"""What the real driver brings back, and what the preflight must see beforehand."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node_worker.gpu import evidence, group, host
from node_worker.gpu.obstacles import MANAGED_ALLOWANCE, checkpoint_obstacles
from node_worker.gpu.pairing import pair
from node_worker.gpu.port import GpuState
from tests.support.cuda_zoo import ORDINARY
from tests.support.gpu_worlds import RealWorld, Workload, opened

SEVERAL = 2

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not host.driver_version(), reason="NO GPU HERE: nothing is shown about the real driver"
    ),
]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RealWorld]:
    async with opened(RealWorld, tmp_path) as world:
        yield world


async def round_trip(world: RealWorld, work: Workload, pairs: dict[str, str] | None = None) -> None:
    """Take its memory off the GPU and bring it back; it counts on with the same data."""
    _, digest = work.progress()
    await group.lock_all(world.gpu, [work.pid], deadline=time.time() + 60)
    await group.checkpoint_all(world.gpu, [work.pid])
    assert await world.gpu.state(work.pid) is GpuState.CHECKPOINTED
    await group.restore_all(world.gpu, [work.pid], pairs)
    await group.unlock_all(world.gpu, [work.pid])
    await work.counts_on()
    assert work.progress()[1] == digest


@pytest.mark.parametrize("kind", sorted(ORDINARY))
async def test_comes_back(world: RealWorld, kind: str) -> None:
    work = await world.run("cuda_zoo.py", kind)
    found = await evidence.gather(world.gpu, [work.pid])

    assert checkpoint_obstacles(found, independent=False) == ()
    assert [process.pid for process in found.processes] == [work.pid]
    await round_trip(world, work)


async def test_a_child_that_never_uses_the_gpu_does_not_count(world: RealWorld) -> None:
    work = await world.run("cuda_zoo.py", "parent")
    child = int((work.home / "child").read_text())
    try:
        found = await evidence.gather(world.gpu, [work.pid, child])

        assert [process.pid for process in found.processes] == [work.pid]
        await round_trip(world, work)
    finally:
        os.kill(child, signal.SIGKILL)


async def test_managed_memory_is_seen_before_anything_is_touched(world: RealWorld) -> None:
    work = await world.run("cuda_zoo.py", "managed")

    found = await evidence.gather(world.gpu, [work.pid])

    assert found.managed[work.pid] > MANAGED_ALLOWANCE
    assert checkpoint_obstacles(found, independent=False)
    assert await world.gpu.state(work.pid) is GpuState.RUNNING
    await work.counts_on()


@pytest.mark.parametrize(("step", "after"), [("checkpoint", 0.4), ("restore", 0.15)])
async def test_a_helper_that_is_killed_in_a_call_costs_nothing(
    world: RealWorld, step: str, after: float
) -> None:
    work = await world.run("cuda_workload.py", str(2 << 30))
    _, digest = work.progress()
    await group.lock_all(world.gpu, [work.pid], deadline=time.time() + 60)
    if step == "restore":
        await group.checkpoint_all(world.gpu, [work.pid])
    killed = world.gpu.helper_pid
    assert killed

    moving = asyncio.create_task(getattr(world.gpu, step)(work.pid))
    await asyncio.sleep(after)
    assert not moving.done()
    os.kill(killed, signal.SIGKILL)
    await moving

    reached = GpuState.CHECKPOINTED if step == "checkpoint" else GpuState.LOCKED
    assert await world.gpu.state(work.pid) is reached
    await group.release_all(world.gpu, [work.pid])
    assert world.gpu.helper_pid != killed
    await work.counts_on()
    assert work.progress()[1] == digest


async def test_moves_to_another_gpu_and_back(world: RealWorld) -> None:
    gpus = await world.gpu.facts()
    if len(gpus) < SEVERAL:
        pytest.skip("ONE GPU HERE: moving to another one is not shown on this machine")
    work = await world.workload()
    for here, there in ((gpus[0], gpus[1]), (gpus[1], gpus[0])):
        pairs = pair([here], [there])
        await round_trip(world, work, pairs)
        (found,) = await world.gpu.processes([work.pid])
        assert found.usage.get(there.uuid, 0) >= world.memory
        assert not found.usage.get(here.uuid)
