"""Two nodes of one GPU each, on one host: a container with PyTorch in it goes from one to the other
and back. And a container that uses both GPUs resumes with them swapped.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from kybernate.embedded.counting import counted, gpu_counter
from node_worker.gpu import host, vram
from node_worker.gpu.helper import CUDA_DRIVER
from tests.support.gpu_kinds import Gpus
from tests.support.node import NODE, Node, whole_node
from tests.support.two_nodes import FIRST, PATIENCE, SECOND, Traveller, two_nodes

NEEDED = 2
UUIDS = host.gpu_uuids()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        len(UUIDS) < NEEDED,
        reason=f"{len(UUIDS)} GPUs HERE, TWO ARE NEEDED: the move is shown on simulated GPUs",
    ),
]
NAME = "traveller"
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""As the kernel module lists them."""
UNEVEN_GIB = 2 + 1 / 16
"""One block more on the first GPU than on the second: so it shows which data is where."""


async def started(node: Node, env: Mapping[str, str], *args: str) -> Traveller:
    counter = gpu_counter()
    workload = msgspec.structs.replace(
        counter.workload, args=(*counter.workload.args, *args), env={**ORDER, **env}
    )
    running = await node.workloads.start_container(NAME, workload, python=counter.python)
    await running.wait_for(lambda lines: len(counted(lines).tokens) > 1, timeout=PATIENCE)
    return Traveller(running)


def held() -> dict[str, int]:
    """Bytes in use by GPU, where there are any."""
    found: dict[str, int] = {}
    for by_gpu in vram.usage().values():
        for uuid, size in by_gpu.items():
            found[uuid] = found.get(uuid, 0) + size
    return {uuid: size for uuid, size in found.items() if size}


@pytest.mark.parametrize(
    ("env", "args"),
    [({}, ("--gpus", "1")), ({"CUDA_VISIBLE_DEVICES": "0"}, ())],
    ids=["sees both", "sees one"],
)
async def test_goes_to_the_other_node_and_back(
    folder: Path, env: dict[str, str], args: tuple[str, ...]
) -> None:
    a, b = UUIDS[:NEEDED]
    gpus = Gpus(driver=CUDA_DRIVER, argument=a), Gpus(driver=CUDA_DRIVER, argument=b)
    async with two_nodes(folder, *gpus) as (first, second):
        await second.workloads.provide_base(python=True)
        traveller = await started(first, env, *args)
        assert held().keys() == {a}

        there = await traveller.move((FIRST, first), (SECOND, second))
        assert [gpu.uuid for gpu in there.gpus] == [a]
        assert traveller.is_below(second)
        assert held().keys() == {b}

        back = await traveller.move((SECOND, second), (FIRST, first))
        assert [gpu.uuid for gpu in back.gpus] == [b]
        assert traveller.is_below(first)
        assert held().keys() == {a}


async def test_resumes_with_its_gpus_swapped(folder: Path) -> None:
    a, b = UUIDS[:NEEDED]
    async with whole_node(folder) as node:
        both = {"CUDA_VISIBLE_DEVICES": f"{a},{b}"}
        traveller = await started(node, both, "--gib", f"{UNEVEN_GIB:g}")
        before = held()
        assert before[a] > before[b]

        checkpoint = await traveller.leave(node, NODE)
        assert not held()
        await traveller.arrive(node, NODE, checkpoint.id, gpu_map={a: b, b: a})

        await traveller.counts_on()
        after = held()
        assert after[a] < after[b]
