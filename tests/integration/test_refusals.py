"""What cannot be done is refused, in words and with advice, and the container notices nothing."""

import asyncio
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from kybernate.client import ClientProblem
from kybernate.embedded.oci import Workload
from kybernate.embedded.workload import NAMESPACE, end_task
from node_worker.containerd.port import TaskStatus
from node_worker.processes import is_cgroup_v1
from schemas import reasons
from schemas.actions import Action, ActionState
from schemas.requests import CheckpointRequest, Request, RestoreRequest
from tests.support.counting import (
    checkpoint_is_refused,
    checkpoint_of,
    counter,
    counting,
    counts_on,
    failure,
)
from tests.support.node import NODE, Node, whole_node

DEVICE = Path("/dev/loop-control")
COUNTING = """
number = 0
while True:
    number += 1
    print(number, flush=True)
    time.sleep(0.02)
"""
TRACER = """
import ctypes, sys, time
if ctypes.CDLL(None, use_errno=True).ptrace(0x4206, int(sys.argv[1]), 0, 0):
    sys.exit("cannot trace")
print("traces", flush=True)
time.sleep(1000)
"""
IO_URING = f"""
import ctypes, time
ring = ctypes.CDLL(None, use_errno=True).syscall(425, 4, ctypes.create_string_buffer(120))
print("ring" if ring >= 0 else "no ring", flush=True)
{COUNTING}"""
NAMELESS_WATCH = f"""
import ctypes, os, time
kept, libc = open("/tmp/file", "w"), ctypes.CDLL(None)
libc.inotify_add_watch(libc.inotify_init1(0), b"/tmp/file", 2)
os.unlink("/tmp/file")
{COUNTING}"""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("refusals")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[Node]:
    with tempfile.TemporaryDirectory(prefix="ky-", dir="/tmp") as folder:
        async with whole_node(Path(folder)) as running:
            yield running


async def until(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not wanted():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


@contextmanager
def containerd_stands_still(node: Node) -> Iterator[None]:
    """What is asked of it meanwhile waits."""
    pid = node.daemon.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def accepted(node: Node, action: Action) -> None:
    async with asyncio.timeout(60):
        async for seen in node.client.watch(action.id):
            if seen.state is ActionState.RUNNING:
                return


async def problem(node: Node, request: Request) -> ClientProblem:
    """Why the controller does not even take the request."""
    with pytest.raises(ClientProblem) as caught:
        await node.client.request(request)
    assert caught.value.message
    return caught.value


# processes that cannot be dumped


async def test_a_stopped_process_where_criu_would_hang(node: Node) -> None:
    workload = counter("sleep 1000 & kill -STOP $!")
    async with counting(node, "stopped", workload) as running:
        if is_cgroup_v1(running.pid):
            why = await checkpoint_is_refused(node, running)
            assert why.reason == reasons.STOPPED_PROCESS
            assert "is stopped" in why.message
            assert "SIGCONT" in why.advice
        else:
            await node.restore((await node.checkpoint("stopped")).id)
            await counts_on(node, running)


@asynccontextmanager
async def traced(pid: int) -> AsyncIterator[None]:
    tracer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TRACER, str(pid), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert tracer.stdout is not None
        assert await tracer.stdout.readline() == b"traces\n"
        yield
    finally:
        tracer.kill()
        await tracer.wait()


async def test_a_traced_process(node: Node) -> None:
    async with counting(node, "traced", counter("sleep 1000 &")) as running:
        child = sorted(await node.runtime.pids(NAMESPACE, "traced"))[1]
        async with traced(child):
            why = await checkpoint_is_refused(node, running)
        assert why.reason == reasons.CANNOT_BE_CHECKPOINTED
        assert "debugger" in why.message
        assert "End the debugger" in why.advice
        await node.checkpoint("traced", leave_running=True)


async def test_an_open_device(node: Node) -> None:
    workload = msgspec.structs.replace(counter(f"exec 3<{DEVICE}"), devices=(DEVICE,))
    async with counting(node, "device", workload) as running:
        why = await checkpoint_is_refused(node, running)
        assert why.reason == reasons.CANNOT_BE_CHECKPOINTED
        assert f"the device {DEVICE} (10:237) open as descriptor 3" in why.message
        assert "Close it" in why.advice


async def test_io_uring(node: Node) -> None:
    workload = Workload(args=("-c", IO_URING))
    async with counting(node, "uring", workload, python=True) as running:
        if "no ring" in running.lines():  # then nothing stands against it
            await node.checkpoint("uring")
            return
        why = await checkpoint_is_refused(node, running)
        assert why.reason == reasons.CANNOT_BE_CHECKPOINTED
        assert "UV_USE_IO_URING=0" in why.message


async def test_what_only_criu_finds_out_is_told_with_the_end_of_its_log(node: Node) -> None:
    workload = Workload(args=("-c", NAMELESS_WATCH))
    async with counting(node, "nameless", workload, python=True) as running:
        why = await checkpoint_is_refused(node, running)
        assert (why.reason, why.step) == (reasons.CANNOT_BE_CHECKPOINTED, "dump")
        assert "watches (inotify) a file that was deleted" in why.message
        assert why.message.splitlines()[-1].endswith("Dumping FAILED.")
        assert "Take the watch away" in why.advice


# containers that are not there, or not as they should be


async def test_a_container_that_has_ended(node: Node) -> None:
    running = await node.workloads.start_container("ended", Workload(args=("true",)))
    await node.runtime.wait_exit(NAMESPACE, "ended", timeout=60)
    for state in ("stopped", "without a task"):
        why = await failure(node, checkpoint_of(running))
        assert why.reason == reasons.NOT_RUNNING
        assert f"container ended is {state}" in why.message
        await end_task(node.runtime, "ended")
    await running.remove()


async def test_a_container_that_somebody_has_paused_stays_paused(node: Node) -> None:
    async with counting(node, "paused") as running:
        await node.runtime.pause(NAMESPACE, "paused")
        why = await failure(node, checkpoint_of(running))
        assert why.reason == reasons.NOT_RUNNING
        assert "container paused is paused" in why.message
        assert (await node.runtime.task(NAMESPACE, "paused")).status is TaskStatus.PAUSED
        await node.runtime.resume(NAMESPACE, "paused")
        await counts_on(node, running)


async def test_an_unknown_container(node: Node) -> None:
    request = CheckpointRequest(container="nobody", namespace=NAMESPACE, node=NODE)
    why = await failure(node, request)
    assert why.reason == reasons.UNKNOWN_CONTAINER
    assert f"no container nobody in containerd's namespace {NAMESPACE}" in why.message


async def test_an_unknown_node_or_checkpoint(node: Node) -> None:
    elsewhere = CheckpointRequest(container="counter", namespace=NAMESPACE, node="elsewhere")
    refused = await problem(node, elsewhere)
    assert (refused.reason, "elsewhere" in refused.message) == (reasons.UNKNOWN_NODE, True)
    unknown = str(uuid.uuid4())
    refused = await problem(node, RestoreRequest(checkpoint=unknown))
    assert (refused.reason, unknown in refused.message) == (reasons.UNKNOWN_CHECKPOINT, True)
    assert refused.advice


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-a", "a\n", "é", "x" * 77])
async def test_a_name_that_no_container_can_have(node: Node, name: str) -> None:
    refused = await problem(node, CheckpointRequest(container=name, namespace=NAMESPACE))
    assert refused.reason == reasons.INVALID_REQUEST
    assert "container" in refused.message


# what is in each other's way


async def test_a_restore_onto_a_running_or_another_container(node: Node) -> None:
    async with counting(node, "original") as running, counting(node, "other") as other:
        checkpoint = (await node.checkpoint("original", leave_running=True)).id
        why = await failure(node, RestoreRequest(checkpoint=checkpoint))
        assert why.reason == reasons.ALREADY_RUNNING
        assert "--name" in why.advice
        await end_task(node.runtime, "other")
        before = await node.runtime.container(NAMESPACE, "other")
        why = await failure(node, RestoreRequest(checkpoint=checkpoint, name="other"))
        assert why.reason == reasons.ALREADY_EXISTS
        assert await node.runtime.container(NAMESPACE, other.id) == before
        await counts_on(node, running)


async def test_two_checkpoints_of_one_container_at_once(node: Node) -> None:
    async with counting(node, "busy") as running:
        with containerd_stands_still(node):
            first = await node.client.request(checkpoint_of(running))
            await accepted(node, first)
            why = await failure(node, checkpoint_of(running))
        assert why.reason == reasons.CONTAINER_BUSY
        assert first.id in why.message
        assert not why.retriable
        assert (await node.client.ended(first.id)).state is ActionState.COMPLETED


async def test_a_deadline_that_passes_during_the_dump(node: Node) -> None:
    async with counting(node, "late") as running:
        request = msgspec.structs.replace(checkpoint_of(running), timeout=8.0)
        action = await node.client.request(request)
        await until(lambda: bool(list(node.checkpoints.glob(f"*/{action.id}/containers/*/images"))))
        with containerd_stands_still(node):
            await asyncio.sleep(max(0, action.deadline - time.time()) + 0.1)
        ended = await node.client.ended(action.id)
        assert ended.failure
        assert ended.failure.reason == reasons.DEADLINE_EXCEEDED
        assert "--timeout" in ended.failure.advice
        await counts_on(node, running)
        assert not list(node.checkpoints.glob(f"**/{action.id}"))
        await node.checkpoint("late", leave_running=True)
