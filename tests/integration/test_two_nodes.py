"""A container with GPU memory goes from one node to another and back; the GPUs are simulated."""

from pathlib import Path

from tests.support import simulated_gpu
from tests.support.gpu_kinds import Gpus
from tests.support.simulated_container import digests, simulated_counter
from tests.support.simulated_gpu import SimulatedGpus, gpu
from tests.support.two_nodes import FIRST, SECOND, Traveller, two_nodes

SIZE = 300_000
A, B = gpu(0).uuid, gpu(1).uuid


def plugged(folder: Path, index: int) -> Gpus:
    gpus = SimulatedGpus(folder)
    gpus.show([gpu(index)])
    return Gpus(driver=simulated_gpu.__name__, argument=str(folder))


async def test_goes_to_the_other_node_and_back(folder: Path) -> None:
    gpus = plugged(folder / "0", 0), plugged(folder / "1", 1)
    async with two_nodes(folder, *gpus) as (first, second):
        await second.workloads.provide_base()
        counter = simulated_counter({A: SIZE})
        traveller = Traveller(await first.workloads.start_container("traveller", counter))
        await traveller.running.wait_for_more(3)
        data = digests(traveller.pid)[A]

        there = await traveller.move((FIRST, first), (SECOND, second))
        assert (there.node, there.gpus) == (FIRST, (gpu(0),))
        assert traveller.is_below(second)
        assert digests(traveller.pid) == {B: data}

        back = await traveller.move((SECOND, second), (FIRST, first))
        assert (back.node, back.gpus) == (SECOND, (gpu(1),))
        assert traveller.is_below(first)
        assert digests(traveller.pid) == {A: data}
