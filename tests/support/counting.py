"""Containers that count on the whole node, and how to see that one lives on as if nothing was."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kybernate.embedded.oci import Workload
from kybernate.embedded.workload import NAMESPACE, Running
from node_worker.containerd.port import TaskStatus
from schemas.actions import ActionState
from schemas.failures import Failure
from schemas.requests import CheckpointRequest, Request
from tests.support.node import Node

COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done"
COUNTER = Workload(args=("sh", "-c", COUNT))


def counter(before: str = "") -> Workload:
    """A counter that does something else first."""
    return Workload(args=("sh", "-c", f"{before}\n{COUNT}"))


@asynccontextmanager
async def counting(
    node: Node, id: str, workload: Workload = COUNTER, *, python: bool = False
) -> AsyncIterator[Running]:
    running = await node.workloads.start_container(id, workload, python=python)
    try:
        await running.wait_for_more(3)
        yield running
    finally:
        await running.remove()
        running.log.unlink(missing_ok=True)


def checkpoint_of(running: Running) -> CheckpointRequest:
    return CheckpointRequest(container=running.id, namespace=NAMESPACE)


async def failure(node: Node, request: Request) -> Failure:
    """Why the request failed, told with words and advice."""
    action = await node.ended(request)
    assert action.state is ActionState.FAILED, action
    assert action.failure
    assert action.failure.message
    assert action.failure.advice
    return action.failure


async def counts_on(node: Node, running: Running) -> None:
    """It runs, and no number was left out or said twice up to now."""
    assert (await node.runtime.task(NAMESPACE, running.id)).status is TaskStatus.RUNNING
    lines = await running.wait_for_more(3)
    numbers = [int(line) for line in lines if line.isdigit()]
    assert numbers == list(range(1, len(numbers) + 1))


async def checkpoint_is_refused(node: Node, running: Running) -> Failure:
    """Why a checkpoint of it is refused; it notices nothing."""
    pid = (await node.runtime.task(NAMESPACE, running.id)).pid
    why = await failure(node, checkpoint_of(running))
    await counts_on(node, running)
    assert (await node.runtime.task(NAMESPACE, running.id)).pid == pid
    return why
