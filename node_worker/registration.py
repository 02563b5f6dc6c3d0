"""Tells the controllers about the node: a heartbeat with what is on it, and the checkpoints that
its disk holds, so that a catalogue that was lost comes back from the nodes.
"""

import asyncio
import logging
import platform
import time
from importlib import metadata
from typing import Final

from kybernate import tasks
from kybernate.bus import Bus, Conflict, TopologyMissing
from kybernate.store import StoreError, manifest_digest, read_manifest
from node_worker.actors import Means
from node_worker.containerd.port import RuntimeProblem
from node_worker.facts import Sleeper, facts_of
from node_worker.gpu import host as gpu_host
from node_worker.gpu.drawbacks import drawbacks
from node_worker.gpu.port import GpuProblem
from node_worker.jobs import Jobs
from node_worker.threads import in_thread
from schemas import reasons
from schemas.base import decode
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.gpus import GpuFacts
from schemas.manifest import CheckpointFacts
from schemas.names import CHECKPOINTS_BUCKET, NODES_BUCKET, node_key
from schemas.nodes import HEARTBEAT_SECONDS, Inventory, NodeWarning
from schemas.orders import Target

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS: Final = 60.0
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
        self._catalogue = bus.table(CHECKPOINTS_BUCKET, CatalogueEntry)
        self._version = metadata.version("kybernate")
        self.recovered = False
        """Nothing of an earlier process is left to undo."""

    async def run_heartbeat(self) -> None:
        await tasks.for_ever(
            self.beat, name="heartbeat", pause=HEARTBEAT_SECONDS, longest=HEARTBEAT_SECONDS
        )

    async def run_announcing(self) -> None:
        await tasks.for_ever(self.announce, name="announcing checkpoints", pause=ANNOUNCE_SECONDS)

    async def beat(self) -> None:
        """Put the node's row as it is now."""
        row = await self._inventory()
        try:
            await self._nodes.put(node_key(row.node), row)
        except TopologyMissing:
            await self._bus.ensure_topology()
            await self._nodes.put(node_key(row.node), row)

    async def announce(self) -> None:
        """Add to the catalogue what this node holds and the catalogue does not know."""
        try:
            known = await self._catalogue.all()
        except TopologyMissing:
            await self._bus.ensure_topology()
            known = {}
        for facts in (*await in_thread(self._on_disk), *self._in_memory()):
            if facts.id not in known:
                await self._add(facts)

    async def _add(self, facts: CheckpointFacts) -> None:
        entry = CatalogueEntry(facts=facts, state=CheckpointState.READY, updated=time.time())
        try:
            await self._catalogue.create(facts.id, entry)
        except Conflict:
            return  # a controller was faster

    def _on_disk(self) -> list[CheckpointFacts]:
        found = []
        for checkpoint in self._means.store.checkpoints():
            try:
                folder = self._means.store.folder(checkpoint)
                found.append(facts_of(read_manifest(folder), manifest_digest(folder)))
            except StoreError as error:
                log.warning("checkpoint %s is left out: %s", checkpoint, error)
        return found

    def _in_memory(self) -> list[CheckpointFacts]:
        return [decode(raw, Sleeper).facts for raw in self._means.ledger.sleepers()]

    async def _inventory(self) -> Inventory:
        warnings: list[NodeWarning] = []
        containers = await self._containers(warnings)
        gpus = await self._gpus(warnings)
        return Inventory(
            node=self._means.settings.node,
            instance=self._instance,
            at=time.time(),
            started=self._started,
            worker_version=self._version,
            ready=self.recovered and containers is not None,
            host=self._means.host,
            containers=containers or (),
            gpus=gpus,
            free_disk_bytes=await self._free_disk(warnings),
            free_memory_bytes=gpu_host.available_bytes(),
            running=self._jobs.running,
            warnings=tuple(warnings),
        )

    async def _containers(self, warnings: list[NodeWarning]) -> tuple[Target, ...] | None:
        """Every container of every namespace; None where containerd does not answer."""
        found: list[Target] = []
        try:
            for namespace in await self._means.runtime.namespaces():
                containers = await self._means.runtime.containers(namespace)
                found += [Target(namespace=namespace, container=one.id) for one in containers]
        except RuntimeProblem as error:
            warnings.append(NodeWarning(reason=reasons.RUNTIME_UNAVAILABLE, message=str(error)))
            return None
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

    async def _free_disk(self, warnings: list[NodeWarning]) -> int:
        try:
            return await in_thread(self._means.store.free_bytes)
        except StoreError as error:
            warnings.append(NodeWarning(reason=error.reason, message=str(error)))
            return 0


def instance_name() -> str:
    """Tells this worker process from any other of the same node's name."""
    return f"{platform.node()}-{time.time_ns():x}"
