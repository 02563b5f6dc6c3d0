"""A container with PyTorch in it goes the whole way of the product on a real NVIDIA GPU."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from kybernate.embedded.counting import Counted, counted, gpu_counter, problem_with
from kybernate.embedded.workload import NAMESPACE, Running
from node_worker.gpu import host, hugepages, vram
from schemas import reasons
from schemas.actions import ActionState
from schemas.orders import Place
from schemas.requests import CheckpointRequest, RestoreRequest
from tests.support.mounts import mounted
from tests.support.node import NODE, Node, whole_node

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not host.driver_version(), reason="NO GPU HERE: the whole way is shown on simulated GPUs"
    ),
]
NAME = "counter"
START = 300.0
"""Seconds for PyTorch to be loaded and the memory to be filled, generously."""


@pytest.fixture
async def node(folder: Path) -> AsyncIterator[Node]:
    async with whole_node(folder) as node:
        yield node


async def counting(node: Node, gib: float) -> Running:
    counter = gpu_counter()
    args = (*counter.workload.args, "--gib", f"{gib:g}")
    workload = msgspec.structs.replace(counter.workload, args=args)
    running = await node.workloads.start_container(NAME, workload, python=counter.python)
    await running.wait_for(lambda lines: len(counted(lines).tokens) > 1, timeout=START)
    return running


def gpu_bytes() -> int:
    """What all processes together hold on all GPUs."""
    return sum(sum(held.values()) for held in vram.usage().values())


async def went_on(running: Running, stood: Counted) -> None:
    """The count goes on from there, with the same data in GPU memory."""
    digests = len(stood.tokens)
    lines = await running.wait_for(
        lambda lines: len(counted(lines).tokens) > digests + 1, timeout=START
    )
    numbers = counted(lines).numbers
    after = msgspec.structs.replace(counted(lines), numbers=numbers[len(stood.numbers) :])
    assert not problem_with(stood, after)


@pytest.mark.parametrize("gib", [2, 20, 40])
async def test_counts_on_with_its_data(node: Node, gib: int) -> None:
    running = await counting(node, gib)
    held = gpu_bytes()

    checkpoint = await node.checkpoint(NAME)
    await running.kill()

    assert held >= gib << 30
    assert gpu_bytes() == 0
    assert checkpoint.size > gib << 30
    stood = counted(running.lines())
    back = await node.restore(checkpoint.id)
    await went_on(node.workloads.running(NAME, back.pid), stood)
    assert gpu_bytes() >= gib << 30


async def test_runs_on_as_if_nothing_had_happened(node: Node) -> None:
    running = await counting(node, 2)

    await node.checkpoint(NAME, leave_running=True)

    await went_on(running, counted(running.lines()))


async def test_huge_pages_are_on_while_memory_moves_and_then_as_before(node: Node) -> None:
    running = await counting(node, 2)
    before = hugepages.setting()
    seen: set[str] = set()

    checkpointing = asyncio.create_task(node.checkpoint(NAME, leave_running=True))
    while not checkpointing.done():
        seen.add(hugepages.setting())
        await asyncio.sleep(0.01)
    await checkpointing

    assert hugepages.WANTED in seen
    assert hugepages.setting() == before
    await went_on(running, counted(running.lines()))


async def test_the_node_tells_of_its_gpus_and_one_that_it_has_not_is_refused(node: Node) -> None:
    gpus = (await node.client.node(NODE)).gpus
    assert {gpu.uuid for gpu in gpus} == set(host.gpu_uuids())
    assert {gpu.driver for gpu in gpus} == {host.driver_version()}
    assert all("NVIDIA" in gpu.model and gpu.memory_bytes > 1 << 30 for gpu in gpus)
    running = await counting(node, 2)
    checkpoint = await node.checkpoint(NAME)
    await running.kill()
    elsewhere = {gpus[0].uuid: "GPU-ffffffff-ffff-4fff-8fff-ffffffffffff"}

    action = await node.ended(RestoreRequest(checkpoint=checkpoint.id, gpu_map=elsewhere))

    assert action.state is ActionState.FAILED
    assert action.failure
    assert action.failure.reason == reasons.GPU_MISFIT
    assert gpu_bytes() == 0
    stood = counted(running.lines())
    back = await node.restore(checkpoint.id)
    await went_on(node.workloads.running(NAME, back.pid), stood)


@pytest.mark.parametrize(
    "gib",
    [
        20,
        pytest.param(
            80,
            marks=pytest.mark.skipif(
                host.available_bytes() < 88 << 30,
                reason=f"ONLY {host.available_bytes() >> 30} GiB OF HOST MEMORY, 88 ARE NEEDED",
            ),
        ),
    ],
)
async def test_waits_in_host_memory_with_the_gpu_free(node: Node, gib: int) -> None:
    running = await counting(node, gib)
    assert gpu_bytes() >= gib << 30

    await node.completed(CheckpointRequest(container=NAME, namespace=NAMESPACE, place=Place.MEMORY))
    stood = counted(running.lines())
    assert gpu_bytes() == 0
    (waiting,) = await node.client.checkpoints()
    await node.restore(waiting.facts.id)

    await went_on(running, stood)
    assert gpu_bytes() >= gib << 30


async def test_memory_that_does_not_fit_below_the_limit_is_refused(node: Node) -> None:
    counter = gpu_counter()
    args = (*counter.workload.args, "--gib", "20")
    workload = msgspec.structs.replace(counter.workload, args=args, memory_bytes=16 << 30)
    running = await node.workloads.start_container(NAME, workload, python=counter.python)
    await running.wait_for(lambda lines: len(counted(lines).tokens) > 1, timeout=START)

    action = await node.ended(CheckpointRequest(container=NAME, namespace=NAMESPACE))

    assert action.state is ActionState.FAILED
    assert action.failure
    assert action.failure.reason == reasons.NOT_ENOUGH_MEMORY
    await went_on(running, counted(running.lines()))


async def test_memory_that_does_not_fit_on_the_disk_is_refused(folder: Path) -> None:
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(mode=0o700)
    with mounted(checkpoints, "-t", "tmpfs", "-o", "size=1g", "tmpfs"):
        async with whole_node(folder) as node:
            running = await counting(node, 2)

            action = await node.ended(CheckpointRequest(container=NAME, namespace=NAMESPACE))

            assert action.state is ActionState.FAILED
            assert action.failure
            assert action.failure.reason == reasons.NOT_ENOUGH_DISK
            await went_on(running, counted(running.lines()))
