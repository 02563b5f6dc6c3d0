"""A container with GPU memory goes from one node to another and back; the GPUs are simulated."""

import hashlib
from pathlib import Path

from tests.support import simulated_gpu
from tests.support.node import Node
from tests.support.simulated_container import HOME, simulated_counter
from tests.support.simulated_gpu import SimulatedGpus, gpu
from tests.support.two_nodes import FIRST, SECOND, Gpus, Traveller, two_nodes

NAME = "traveller"
SIZE = 300_000
A, B = gpu(0).uuid, gpu(1).uuid


def plugged(folder: Path, *indices: int) -> Gpus:
    gpus = SimulatedGpus(folder)
    gpus.show([gpu(index) for index in indices])
    return Gpus(driver=simulated_gpu.__name__, argument=str(folder))


async def started(node: Node, memory: dict[str, int]) -> Traveller:
    running = await node.workloads.start_container(NAME, simulated_counter(memory))
    await running.wait_for_more(3)
    return Traveller(running)


def memory_of(traveller: Traveller) -> dict[str, str]:
    """Digests of what it holds, by GPU."""
    home = Path(f"/proc/{traveller.pid}/root{HOME}/1")
    return {
        path.name.removeprefix("vram-"): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in home.glob("vram-*")
    }


async def test_goes_to_the_other_node_and_back(folder: Path) -> None:
    gpus = plugged(folder / "0", 0), plugged(folder / "1", 1)
    async with two_nodes(folder, *gpus) as (first, second):
        await second.workloads.provide_base()
        traveller = await started(first, {A: SIZE})
        data = memory_of(traveller)[A]

        there = await traveller.move((FIRST, first), (SECOND, second))
        assert (there.node, there.gpus) == (FIRST, (gpu(0),))
        assert traveller.is_below(second)
        assert memory_of(traveller) == {B: data}

        back = await traveller.move((SECOND, second), (FIRST, first))
        assert (back.node, back.gpus) == (SECOND, (gpu(1),))
        assert traveller.is_below(first)
        assert memory_of(traveller) == {A: data}


async def test_resumes_with_its_gpus_swapped(folder: Path) -> None:
    gpus = plugged(folder / "0", 0, 1), plugged(folder / "1")
    async with two_nodes(folder, *gpus) as (first, _):
        traveller = await started(first, {A: SIZE, B: SIZE + 1})
        before = memory_of(traveller)

        checkpoint = await traveller.leave(first, FIRST)
        await traveller.arrive(first, FIRST, checkpoint.id, gpu_map={A: B, B: A})

        await traveller.counts_on()
        assert memory_of(traveller) == {A: before[B], B: before[A]}
