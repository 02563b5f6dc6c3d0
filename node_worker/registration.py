"""Tells the controllers about the node: what is on it, and whether it takes jobs."""

import asyncio
import logging
import platform
import time
from importlib import metadata
from typing import Final

from kybernate import tasks
from kybernate.bus import Bus, TopologyMissing
from kybernate.store import StoreError, StoreFull
from node_worker.actors import Means
from node_worker.containerd.port import RuntimeProblem
from node_worker.gpu import host as gpu_host
from node_worker.gpu.drawbacks import drawbacks
from node_worker.gpu.port import GpuProblem
from node_worker.jobs import Jobs
from node_worker.threads import in_thread
from schemas import reasons
from schemas.gpus import GpuFacts
from schemas.names import NODES_BUCKET, node_key
from schemas.nodes import HEARTBEAT_SECONDS, Inventory, NodeWarning
from schemas.orders import Target

log = logging.getLogger(__name__)

RECOVERING: Final = "it still undoes or finishes what an earlier worker process left"
GPU_PATIENCE_SECONDS: Final = 2.0
"""A driver that hangs must not silence the node."""


class Registration:
    def __init__(self, bus: Bus, means: Means, jobs: Jobs, instance: str) -> None:
        self._bus = bus
        self._means = means
        self._jobs = jobs
        self._instance = instance
        self._started = time.time()
        self._nodes = bus.table(NODES_BUCKET, Inventory)
        self._version = metadata.version("kybernate")
        self._problem = ""
        self.recovered = False
        """Nothing of an earlier process is left to undo."""

    async def run_heartbeat(self) -> None:
        await tasks.for_ever(
            self.beat, name="heartbeat", pause=HEARTBEAT_SECONDS, longest=HEARTBEAT_SECONDS
        )

    async def beat(self) -> None:
        """Put the node's row as it is now."""
        row = await self._inventory()
        self._tell(row.problem)
        try:
            await self._nodes.put(node_key(row.node), row)
        except TopologyMissing:
            await self._bus.ensure_topology()
            await self._nodes.put(node_key(row.node), row)

    async def _inventory(self) -> Inventory:
        obstacles: list[NodeWarning] = []
        warnings: list[NodeWarning] = []
        containers = await self._containers(obstacles)
        free_disk = await self._free_disk(obstacles, warnings)
        gpus = await self._gpus(warnings)
        in_the_way = "; ".join(obstacle.message for obstacle in obstacles)
        problem = in_the_way if self.recovered else RECOVERING
        return Inventory(
            node=self._means.settings.node,
            instance=self._instance,
            at=time.time(),
            started=self._started,
            worker_version=self._version,
            ready=not problem,
            problem=problem,
            host=self._means.host,
            containers=containers,
            gpus=gpus,
            free_disk_bytes=free_disk,
            free_memory_bytes=gpu_host.available_bytes(),
            running=self._jobs.running,
            warnings=(*obstacles, *warnings),
        )

    def _tell(self, problem: str) -> None:
        """In the log, when it has changed: whoever starts a worker looks there."""
        if problem and problem not in {self._problem, RECOVERING}:
            log.error("node %s takes no jobs: %s", self._means.settings.node, problem)
        elif self._problem and not problem:
            log.info("node %s takes jobs", self._means.settings.node)
        self._problem = problem

    async def _containers(self, obstacles: list[NodeWarning]) -> tuple[Target, ...]:
        """Every container of every namespace."""
        found: list[Target] = []
        try:
            for namespace in await self._means.runtime.namespaces():
                containers = await self._means.runtime.containers(namespace)
                found += [Target(namespace=namespace, container=one.id) for one in containers]
        except RuntimeProblem as error:
            obstacles.append(NodeWarning(reason=reasons.RUNTIME_UNAVAILABLE, message=str(error)))
            return ()
        return tuple(found)

    async def _gpus(self, warnings: list[NodeWarning]) -> tuple[GpuFacts, ...]:
        try:
            async with asyncio.timeout(GPU_PATIENCE_SECONDS):
                warnings += await drawbacks(self._means.gpu)
                return await self._means.gpu.facts()
        except GpuProblem as error:
            warnings.append(NodeWarning(reason=error.reason, message=str(error)))
        except TimeoutError:
            silent = "the NVIDIA driver has not told its GPUs yet"
            warnings.append(NodeWarning(reason=reasons.GPU_UNAVAILABLE, message=silent))
        return ()

    async def _free_disk(self, obstacles: list[NodeWarning], warnings: list[NodeWarning]) -> int:
        """A full disk is no obstacle: deleting a checkpoint is what helps."""
        try:
            free = await in_thread(self._means.store.free_bytes)
        except StoreError as error:
            message = f"{error}; {error.advice}"
            obstacles.append(NodeWarning(reason=error.reason, message=message))
            return 0
        if not free:
            message = f"the disk of {self._means.store.root} is full; {StoreFull.advice}"
            warnings.append(NodeWarning(reason=reasons.DISK_FULL, message=message))
        return free


def instance_name() -> str:
    """Tells this worker process from any other of the same node's name."""
    return f"{platform.node()}-{time.time_ns():x}"
