"""Containers that use CUDA in different ways go the whole way of the product, CRIU included."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from kybernate.embedded.counting import gpu_counter
from kybernate.embedded.oci import Bind, Workload
from kybernate.embedded.workload import NAMESPACE, Running
from node_worker.gpu import host
from schemas import reasons
from schemas.actions import ActionState
from schemas.messages import Checkpointed
from schemas.requests import CheckpointRequest
from tests.support import cuda_zoo
from tests.support.gpu_worlds import until
from tests.support.node import Node, whole_node

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not host.driver_version(), reason="NO GPU HERE: the whole way is shown on simulated GPUs"
    ),
]
NAME = "kind"
REQUEST = CheckpointRequest(container=NAME, namespace=NAMESPACE)
INSIDE = "/zoo.py"
FOUND_BY = ("PATH", "LD_LIBRARY_PATH", "CUDA_PATH", "CUDA_HOME")
FOUND_IN = (Path("/etc/ld.so.cache"), Path("/etc/alternatives"))
"""How compilers and libraries are found; the container has the host's."""
PAIR = ("graph", "pinned")
BOTH = f"""\
import os, subprocess, sys
for kind in {PAIR}:
    os.mkdir(f"/tmp/{{kind}}")
    subprocess.Popen([sys.executable, {INSIDE!r}, f"/tmp/{{kind}}", kind])
os.wait()
"""
"""Ends, and with it the container, when one of them ends."""


@pytest.fixture
async def node(folder: Path) -> AsyncIterator[Node]:
    async with whole_node(folder) as node:
        yield node


async def started(node: Node, *args: str) -> Running:
    workload = Workload(
        args=args,
        env={name: os.environ[name] for name in FOUND_BY if name in os.environ},
        binds=(
            Bind(source=Path(cuda_zoo.__file__), target=INSIDE),
            *(Bind(source=path, target=str(path)) for path in FOUND_IN if path.exists()),
        ),
        devices=gpu_counter().workload.devices,
    )
    return await node.workloads.start_container(NAME, workload, python=True)


def progress(running: Running, folder: str = "/tmp") -> tuple[int, str]:
    """How far it has counted, and the digest; (0, "") before its first count, or after its end."""
    try:
        text = Path(f"/proc/{running.pid}/root{folder}/progress").read_text()
    except OSError:
        return 0, ""
    loop, _, digest = text.strip().removeprefix("Loop ").partition(": ")
    return int(loop), digest


async def counts(running: Running, folder: str = "/tmp", *, above: int = 0) -> tuple[int, str]:
    def done() -> bool:
        return progress(running, folder)[0] > above or not Path(f"/proc/{running.pid}").exists()

    await until(done, f"{folder} counts, or has ended")
    assert progress(running, folder)[0] > above, running.output()
    return progress(running, folder)


async def refused(node: Node, running: Running, request: CheckpointRequest) -> str:
    """The reason; it counts on as if nothing had been asked."""
    before = progress(running)
    action = await node.ended(request)
    assert action.state is ActionState.FAILED
    assert action.failure
    assert await counts(running, above=progress(running)[0]) > before
    assert progress(running)[1] == before[1]
    return action.failure.reason


async def round_trip(node: Node, running: Running, request: CheckpointRequest) -> Running:
    """Down, killed, and up again."""
    result = (await node.completed(request)).result
    assert isinstance(result, Checkpointed)
    await running.kill()
    back = await node.restore(result.checkpoint.id)
    return node.workloads.running(NAME, back.pid)


@pytest.mark.parametrize("kind", sorted(cuda_zoo.ORDINARY))
async def test_comes_back(node: Node, kind: str) -> None:
    running = await started(node, INSIDE, "/tmp", kind)
    loop, digest = await counts(running)

    again = await round_trip(node, running, REQUEST)

    assert progress(again)[0] >= loop
    assert (await counts(again, above=progress(again)[0]))[1] == digest


async def test_managed_memory_is_refused(node: Node) -> None:
    running = await started(node, INSIDE, "/tmp", "managed")
    await counts(running)

    reason = await refused(node, running, REQUEST)

    assert reason == reasons.GPU_UNSUPPORTED


async def test_memory_that_two_processes_share_is_refused(node: Node) -> None:
    running = await started(node, INSIDE, "/tmp", "shared")
    await counts(running)

    reason = await refused(node, running, REQUEST)

    assert reason == reasons.GPU_SHARED_MEMORY


async def test_a_kernel_that_runs_too_long_is_left_alone(node: Node) -> None:
    running = await started(node, INSIDE, "/tmp", "busy")
    loop, _ = await counts(running)
    kernel = Path(f"/proc/{running.pid}/root/tmp/kernel")
    await until(lambda: int(kernel.read_text() or 0) > loop, "the next kernel runs")

    reason = await refused(node, running, msgspec.structs.replace(REQUEST, timeout=2.0))

    assert reason == reasons.GPU_BUSY
    assert progress(running)[0] == loop + 1


async def test_several_processes_come_back_when_the_order_says_that_they_share_nothing(
    node: Node,
) -> None:
    running = await started(node, "-c", BOTH)
    before = {kind: await counts(running, f"/tmp/{kind}") for kind in PAIR}

    action = await node.ended(REQUEST)
    assert action.state is ActionState.FAILED
    assert action.failure
    assert action.failure.reason == reasons.GPU_SHARED_MEMORY
    for kind in PAIR:
        await counts(running, f"/tmp/{kind}", above=progress(running, f"/tmp/{kind}")[0])

    independent = msgspec.structs.replace(REQUEST, independent_gpu_processes=True)
    again = await round_trip(node, running, independent)
    for kind, (loop, digest) in before.items():
        there = progress(again, f"/tmp/{kind}")[0]
        assert there >= loop
        assert (await counts(again, f"/tmp/{kind}", above=there))[1] == digest
