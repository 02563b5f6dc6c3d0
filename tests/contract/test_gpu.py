"""What every `Gpu` does, shown on simulated GPUs and, where there is one, on a real one."""

import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from node_worker.gpu import group, host
from node_worker.gpu.client import open_gpu
from node_worker.gpu.port import GpuBusy, GpuFailed, GpuHung, GpuState, NotCuda, ProcessGone
from tests.support.gpu_worlds import RealWorld, SimulatedWorld, opened, until

NO_GPU = "NO GPU HERE: the contract with the real CUDA driver is not shown on this machine"
REAL = pytest.param(
    RealWorld,
    marks=[pytest.mark.gpu, pytest.mark.skipif(not host.driver_version(), reason=NO_GPU)],
    id="real",
)


@pytest.fixture(params=[pytest.param(SimulatedWorld, id="simulated"), REAL])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SimulatedWorld]:
    async with opened(request.param, tmp_path) as world:
        yield world


async def test_describes_its_gpus(world: SimulatedWorld) -> None:
    facts = await world.gpu.facts()

    assert [gpu.index for gpu in facts] == list(range(len(facts)))
    assert all(gpu.uuid.startswith("GPU-") and gpu.model and gpu.driver for gpu in facts)
    assert all(gpu.memory_bytes > world.memory for gpu in facts)
    assert not await world.gpu.absence()


async def test_tells_processes_with_cuda_from_others(world: SimulatedWorld) -> None:
    work, other = await world.workload(), await world.process_without_cuda()

    (found,) = await world.gpu.processes([other, work.pid])

    assert found.pid == work.pid
    assert await world.gpu.state(work.pid) is GpuState.RUNNING
    with pytest.raises(NotCuda):
        await world.gpu.state(other)


async def test_says_how_much_gpu_memory_a_process_holds(world: SimulatedWorld) -> None:
    work = await world.workload()

    (found,) = await world.gpu.processes([work.pid])

    assert sum(found.usage.values()) >= world.memory
    assert found.usage.keys() <= {gpu.uuid for gpu in await world.gpu.facts()}


async def test_memory_comes_back_and_the_work_goes_on(world: SimulatedWorld) -> None:
    gpu, work = world.gpu, await world.workload()
    _, digest = work.progress()

    await gpu.lock(work.pid, 30)
    assert await gpu.state(work.pid) is GpuState.LOCKED
    await gpu.checkpoint(work.pid)
    assert await gpu.state(work.pid) is GpuState.CHECKPOINTED
    (found,) = await gpu.processes([work.pid])
    assert not sum(found.usage.values())
    stood_at = work.progress()
    await gpu.restore(work.pid)
    assert await gpu.state(work.pid) is GpuState.LOCKED
    assert work.progress() == stood_at
    await gpu.unlock(work.pid)

    assert await gpu.state(work.pid) is GpuState.RUNNING
    await work.counts_on()
    assert work.progress()[1] == digest


async def test_a_lock_that_times_out_leaves_the_work_undisturbed(world: SimulatedWorld) -> None:
    work = await world.workload()
    await work.keep_busy(3)

    started = time.monotonic()
    with pytest.raises(GpuBusy):
        await world.gpu.lock(work.pid, 0.5)

    assert time.monotonic() - started >= 0.5
    assert await world.gpu.state(work.pid) is GpuState.RUNNING
    await work.counts_on()


async def test_a_lock_waits_for_the_kernel(world: SimulatedWorld) -> None:
    work = await world.workload()
    await work.keep_busy(1)

    await world.gpu.lock(work.pid, 60)

    assert await world.gpu.state(work.pid) is GpuState.LOCKED
    await world.gpu.unlock(work.pid)


async def test_steps_out_of_order_change_nothing(world: SimulatedWorld) -> None:
    work = await world.workload()

    for step in (world.gpu.checkpoint, world.gpu.restore, world.gpu.unlock):
        with pytest.raises(GpuFailed):
            await step(work.pid)

    assert await world.gpu.state(work.pid) is GpuState.RUNNING
    await work.counts_on()


async def test_a_process_that_ended_is_gone(world: SimulatedWorld) -> None:
    work = await world.workload()
    await world.gpu.lock(work.pid, 30)
    os.kill(work.pid, signal.SIGKILL)
    await work.process.wait()

    with pytest.raises(ProcessGone):
        await world.gpu.checkpoint(work.pid)
    assert await world.gpu.processes([work.pid]) == ()
    await group.release_all(world.gpu, [work.pid])


async def test_an_unknown_gpu_is_refused_and_the_process_still_comes_back(
    world: SimulatedWorld,
) -> None:
    gpu, work = world.gpu, await world.workload()
    here = (await gpu.facts())[0].uuid
    await gpu.lock(work.pid, 30)
    await gpu.checkpoint(work.pid)

    with pytest.raises(GpuFailed):
        await gpu.restore(work.pid, {here: "GPU-ffffffff-ffff-4fff-8fff-ffffffffffff"})

    assert await gpu.state(work.pid) is GpuState.CHECKPOINTED
    await group.release_all(gpu, [work.pid])
    await work.counts_on()


async def test_states_outlive_the_helper(world: SimulatedWorld) -> None:
    gpu, work = world.gpu, await world.workload()
    await gpu.lock(work.pid, 30)
    await gpu.checkpoint(work.pid)
    killed = gpu.helper_pid
    assert killed

    os.kill(killed, signal.SIGKILL)
    await until(lambda: gpu.helper_pid is None, "the end of the helper is noticed")

    assert await gpu.state(work.pid) is GpuState.CHECKPOINTED
    assert gpu.helper_pid not in {None, killed}
    await group.release_all(gpu, [work.pid])
    await work.counts_on()


async def test_a_helper_that_does_not_answer_is_killed_and_nothing_stays_locked(
    world: SimulatedWorld,
) -> None:
    gpu, work = world.gpu, await world.workload()
    await gpu.lock(work.pid, 30)
    stuck = gpu.helper_pid
    assert stuck
    os.kill(stuck, signal.SIGSTOP)

    with pytest.raises(GpuHung):
        await gpu.checkpoint(work.pid, timeout=1.0)

    assert not Path(f"/proc/{stuck}").exists()
    await group.release_all(gpu, [work.pid])
    assert await gpu.state(work.pid) is GpuState.RUNNING
    await work.counts_on()


async def test_the_driver_waits_for_a_process_that_stands_still(
    world: SimulatedWorld, tmp_path: Path
) -> None:
    work = await world.workload()
    os.kill(work.pid, signal.SIGSTOP)
    other = tmp_path / "other"
    other.mkdir()

    impatient = msgspec.structs.replace(world.settings(call_timeout=4.0), state=other)
    async with open_gpu(impatient) as gpu:
        with pytest.raises(GpuHung):
            await gpu.state(work.pid)
        os.kill(work.pid, signal.SIGCONT)

        assert await gpu.state(work.pid) is GpuState.RUNNING
    await work.counts_on()


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
async def test_release_brings_back_from_every_state(world: SimulatedWorld, steps: int) -> None:
    gpu, work = world.gpu, await world.workload()
    walk = (gpu.lock(work.pid, 30), gpu.checkpoint(work.pid), gpu.restore(work.pid))
    for step in walk[:steps]:
        await step
    for step in walk[steps:]:
        step.close()

    await group.release_all(gpu, [work.pid])
    await group.release_all(gpu, [work.pid])

    assert await gpu.state(work.pid) is GpuState.RUNNING
    await work.counts_on()


async def test_several_processes_go_round_together(world: SimulatedWorld) -> None:
    gpu, works = world.gpu, [await world.workload(), await world.workload()]
    pids = [work.pid for work in works]
    digests = [work.progress()[1] for work in works]

    await group.lock_all(gpu, pids, deadline=time.time() + 60)
    await group.checkpoint_all(gpu, pids)
    assert {await gpu.state(pid) for pid in pids} == {GpuState.CHECKPOINTED}
    await group.restore_all(gpu, pids)
    await group.unlock_all(gpu, pids)

    for work in works:
        await work.counts_on()
    assert [work.progress()[1] for work in works] == digests
