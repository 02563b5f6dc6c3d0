"""The helper process: killed when a call hangs, replaced when it dies, alone in its folder."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from node_worker.gpu.client import open_gpu
from node_worker.gpu.helper import HelperSettings
from node_worker.gpu.port import GpuFailed, GpuHung, GpuState, GpuUnavailable
from tests.support.gpu_worlds import SimulatedWorld, opened, until
from tests.support.simulated_gpu import Fault

HANG = Fault(kind="hang")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedWorld]:
    async with opened(SimulatedWorld, tmp_path) as world:
        yield world


async def test_a_call_that_hangs_costs_the_helper_its_life(world: SimulatedWorld) -> None:
    work = await world.workload()
    await world.gpu.lock(work.pid, 30)
    hung = world.gpu.helper_pid
    assert hung
    world.gpus.fault("checkpoint", work.pid, HANG)

    with pytest.raises(GpuHung, match="Checkpoint"):
        await world.gpu.checkpoint(work.pid, timeout=0.3)

    assert not alive(hung)
    assert await world.gpu.state(work.pid) is GpuState.LOCKED
    assert world.gpu.helper_pid != hung


async def test_other_calls_go_on_with_the_next_helper(world: SimulatedWorld) -> None:
    stuck, fine = await world.workload(), await world.workload()
    for work in (stuck, fine):
        await world.gpu.lock(work.pid, 30)
    world.gpus.fault("checkpoint", stuck.pid, HANG)
    world.gpus.fault("checkpoint-after", fine.pid, Fault(kind="slow", seconds=1.5))

    outcomes = await asyncio.gather(
        world.gpu.checkpoint(stuck.pid, timeout=0.5),
        world.gpu.checkpoint(fine.pid, timeout=30),
        return_exceptions=True,
    )

    assert isinstance(outcomes[0], GpuHung)
    assert outcomes[1] is None
    assert await world.gpu.state(fine.pid) is GpuState.CHECKPOINTED
    assert world.gpus.calls().count(f"checkpoint {fine.pid}") == 1


async def test_a_helper_that_dies_in_a_call_is_replaced(world: SimulatedWorld) -> None:
    work = await world.workload()
    world.gpus.fault("lock-after", work.pid, Fault(kind="die"))

    await world.gpu.lock(work.pid, 30)

    assert await world.gpu.state(work.pid) is GpuState.LOCKED
    assert world.gpus.calls() == [f"lock {work.pid}"]


async def test_a_lock_that_hangs_beyond_its_grace_is_hung(world: SimulatedWorld) -> None:
    work = await world.workload()
    world.gpus.fault("lock", work.pid, HANG)
    settings = world.settings(lock_grace=0.2)

    async with open_gpu(settings) as gpu:
        with pytest.raises(GpuHung):
            await gpu.lock(work.pid, 0.1)


async def test_an_error_code_reaches_the_caller(world: SimulatedWorld) -> None:
    work = await world.workload()
    world.gpus.fault("lock", work.pid, Fault(kind="error", code="CUDA_ERROR_UNKNOWN"))

    with pytest.raises(GpuFailed, match="CUDA_ERROR_UNKNOWN") as caught:
        await world.gpu.lock(work.pid, 30)

    assert caught.value.code == "CUDA_ERROR_UNKNOWN"


async def test_a_cancelled_call_keeps_its_process_busy_until_it_is_back(
    world: SimulatedWorld,
) -> None:
    work = await world.workload()
    await world.gpu.lock(work.pid, 30)
    world.gpus.fault("checkpoint", work.pid, Fault(kind="slow", seconds=0.5))
    moving = asyncio.create_task(world.gpu.checkpoint(work.pid))
    await until(lambda: f"checkpoint {work.pid}" in world.gpus.calls(), "the call is under way")

    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving

    assert await world.gpu.state(work.pid) is GpuState.CHECKPOINTED


async def test_two_helpers_never_share_a_folder(
    world: SimulatedWorld,
) -> None:
    await world.gpu.facts()
    impatient = msgspec.structs.replace(world.settings(), takeover_timeout=0.1)

    async with open_gpu(impatient) as second:
        with pytest.raises(GpuUnavailable, match="another worker uses its folder"):
            await second.facts()


async def test_the_next_helper_waits_until_the_last_is_gone(world: SimulatedWorld) -> None:
    await world.gpu.facts()
    held = world.gpu.helper_pid
    assert held

    async with open_gpu(world.settings()) as second:
        asking = asyncio.create_task(second.facts())
        await asyncio.sleep(0.2)
        assert not asking.done()
        os.kill(held, signal.SIGKILL)

        assert len(await asking) == 2


async def test_the_helper_ends_with_its_worker(tmp_path: Path) -> None:
    async with opened(SimulatedWorld, tmp_path) as world:
        work = await world.workload()
        await world.gpu.facts()  # so that there is a helper
        world.gpus.fault("lock", work.pid, HANG)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await world.gpu.lock(work.pid, 60)
        helper = world.gpu.helper_pid
        assert helper

    assert not alive(helper)


async def test_a_machine_without_gpus_needs_no_helper(world: SimulatedWorld) -> None:
    world.gpus.show(())

    assert await world.gpu.facts() == ()
    assert await world.gpu.processes([os.getpid()]) == ()
    assert "plugged in" in await world.gpu.absence()
    assert world.gpu.helper_pid is None


async def test_who_does_not_wait_for_the_inventory_leaves_it_to_the_next(
    world: SimulatedWorld,
) -> None:
    world.gpus.fault("facts", None, Fault(kind="slow", seconds=2.0))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await world.gpu.facts()

    assert len(await world.gpu.facts()) == 2


async def test_an_inventory_that_hangs_is_asked_for_again(world: SimulatedWorld) -> None:
    world.gpus.fault("facts", None, HANG)

    async with open_gpu(world.settings(call_timeout=4.0)) as gpu:
        with pytest.raises(GpuHung):
            await gpu.facts()
        assert len(await gpu.facts()) == 2


async def test_a_helper_that_cannot_start_is_told(tmp_path: Path) -> None:
    async with open_gpu(HelperSettings(state=tmp_path / "none")) as gpu:
        with pytest.raises(GpuUnavailable, match="tried 3 times"):
            await gpu.facts()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
