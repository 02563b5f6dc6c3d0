"""Two nodes on one host, each with its own containerd, worker and GPUs, under one controller."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from kybernate.bus import BusSettings
from kybernate.bus.nats import connect as connect_bus
from kybernate.client import client
from kybernate.embedded.containerd import private_containerd
from kybernate.embedded.counting import counted, problem_with
from kybernate.embedded.host import HostSettings, all_in_one
from kybernate.embedded.stack import find_stack
from kybernate.embedded.workload import NAMESPACE, Running
from node_worker import app as worker_app
from node_worker.containerd.client import connect
from node_worker.settings import WorkerSettings
from schemas.manifest import CheckpointFacts
from schemas.messages import Checkpointed, Restored
from schemas.requests import CheckpointRequest, RestoreRequest
from tests.support.gpu_kinds import Gpus
from tests.support.node import Node

FIRST, SECOND = "first", "second"
PATIENCE = 300.0
"""Seconds until it counts; PyTorch takes some to load."""


@asynccontextmanager
async def two_nodes(folder: Path, first: Gpus, second: Gpus) -> AsyncIterator[tuple[Node, Node]]:
    settings = HostSettings(
        folder=folder / FIRST,
        node=FIRST,
        listen="127.0.0.1:0",
        gpu_driver=first.driver,
        gpu_argument=first.argument,
    )
    async with (
        all_in_one(settings) as host,
        connect(host.containerd) as runtime,
        client((host.url,)) as rest,
    ):
        assert host.daemon is not None
        one = Node(host.url, folder / FIRST, host.daemon, runtime, rest)
        bus = BusSettings(servers=(host.nats,))
        async with _second(folder / SECOND, bus, second, one) as two:
            yield one, two


@asynccontextmanager
async def _second(folder: Path, bus: BusSettings, gpus: Gpus, one: Node) -> AsyncIterator[Node]:
    async with (
        private_containerd(find_stack(), folder / "containerd") as daemon,
        connect(daemon.socket) as runtime,
        connect_bus(bus, name=SECOND) as link,
    ):
        settings = WorkerSettings(
            node=SECOND,
            state=folder / "worker",
            checkpoints=folder / "checkpoints",
            containerd=daemon.socket,
            bus=bus,
            gpu_driver=gpus.driver,
            gpu_argument=gpus.argument,
            runc_root=daemon.runc_root,
            cgroup_parent=daemon.cgroup_parent,
        )
        async with worker_app.serving(settings, link):
            yield Node(one.url, folder, daemon, runtime, one.client)


class Traveller:
    """A container that counts, wherever it is; its output stays in one file."""

    def __init__(self, running: Running) -> None:
        self.running = running

    @property
    def pid(self) -> int:
        return self.running.pid

    async def leave(self, node: Node, name: str) -> CheckpointFacts:
        """Checkpoint it on its node, which ends it there."""
        request = CheckpointRequest(container=self.running.id, namespace=NAMESPACE, node=name)
        result = (await node.completed(request)).result
        assert isinstance(result, Checkpointed)
        return result.checkpoint

    async def arrive(
        self, node: Node, name: str, checkpoint: str, *, gpu_map: Mapping[str, str] | None = None
    ) -> None:
        """Resume it on that node, which has the checkpoint's folder."""
        request = RestoreRequest(checkpoint=checkpoint, node=name, gpu_map=dict(gpu_map or {}))
        result = (await node.completed(request)).result
        assert isinstance(result, Restored)
        self.running = Running(node.runtime, self.running.id, result.pid, self.running.log)

    async def move(self, source: tuple[str, Node], target: tuple[str, Node]) -> CheckpointFacts:
        """From one node to the other: checkpoint, copy, restore; it counts on there."""
        checkpoint = await self.leave(source[1], source[0])
        await asyncio.to_thread(carry, checkpoint.id, source[1], target[1])
        await self.arrive(target[1], target[0], checkpoint.id)
        await self.counts_on()
        return checkpoint

    async def counts_on(self) -> None:
        """It is the same process with the same data, and has not left out a number."""
        before = counted(self.running.lines())
        lines = await self.running.wait_for(
            lambda lines: len(counted(lines).tokens) > len(before.tokens) + 1, timeout=PATIENCE
        )
        numbers = counted(lines).numbers[len(before.numbers) :]
        assert not problem_with(before, msgspec.structs.replace(counted(lines), numbers=numbers))

    def is_below(self, node: Node) -> bool:
        """Whether this node's containerd, and no other, has it."""
        cgroups = Path(f"/proc/{self.pid}/cgroup").read_text()
        states = (node.daemon.runc_root / NAMESPACE / self.running.id / "state.json").is_file()
        return f"{node.daemon.cgroup_parent}/" in cgroups and states


def carry(checkpoint: str, source: Node, target: Node) -> None:
    """Copy the checkpoint's folder, as an operator would between two hosts."""
    target.checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copytree(source.checkpoints / checkpoint, target.checkpoints / checkpoint)
