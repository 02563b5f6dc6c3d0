"""The zoo's animals in containers: started by name, asked for their proofs."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from kybernate.embedded.oci import Bind, Tmpfs, User, Workload
from kybernate.embedded.workload import NAMESPACE, Running
from tests.support.node import Node

ZOO = Path(__file__).parents[1] / "integration" / "zoo"
ANYBODY = User(uid=1000, gid=1000)
ENV = {"PYTHONPATH": "/opt", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/root"}
ORDINARY = Workload(
    args=("-m", "zoo"),
    env=ENV,
    binds=(Bind(source=ZOO, target="/opt/zoo"),),
    tmpfs=(Tmpfs(target="/dev/shm"),),
)
SURROUNDINGS: dict[str, dict[str, object]] = {
    "not_root": {"user": ANYBODY, "capabilities": ()},
    "few_capabilities": {"capabilities": ("CAP_KILL",)},
}


@asynccontextmanager
async def animal(node: Node, name: str, **surroundings: object) -> AsyncIterator[Running]:
    changes = {**SURROUNDINGS.get(name, {}), **surroundings}
    workload = msgspec.structs.replace(ORDINARY, args=(*ORDINARY.args, name), **changes)
    running = await node.workloads.start_container(name, workload, python=True)
    try:
        await running.wait_for(lambda lines: "ready" in lines)
        yield running
    finally:
        await running.remove()


async def proof(node: Node, running: Running, number: int) -> str:
    await node.runtime.kill(NAMESPACE, running.id, signal.SIGUSR1)
    said = await running.wait_for(
        lambda lines: any(line.startswith(f"proof {number} ") for line in lines)
    )
    return next(line for line in said if line.startswith(f"proof {number} "))
