"""What the nodes say about themselves, and so which node a request is for."""

import time
from collections import Counter
from collections.abc import Callable

from controller.refusals import Refused
from controller.topology import repaired
from kybernate.bus.port import Bus
from schemas import reasons
from schemas.gpus import GpuFacts
from schemas.manifest import CheckpointFacts
from schemas.names import NODES_BUCKET, node_key
from schemas.nodes import HEARTBEAT_SECONDS, SILENT_AFTER_SECONDS, Inventory
from schemas.orders import Target

FRESH_SECONDS = HEARTBEAT_SECONDS
"""What was read this long ago is as good as a new read, except to refuse something."""


class Nodes:
    """The inventories, as read last. Nothing is refused on an old read."""

    def __init__(self, bus: Bus, *, clock: Callable[[], float] = time.time) -> None:
        self._bus = bus
        self._table = bus.table(NODES_BUCKET, Inventory)
        self._clock = clock
        self._known: dict[str, Inventory] = {}
        self._read = float("-inf")

    async def refresh(self) -> None:
        started = self._clock()
        rows = await repaired(self._bus, self._table.all)
        self._known = {row.value.node: row.value for row in rows.values()}
        self._read = started

    async def all(self) -> tuple[Inventory, ...]:
        await self.refresh()
        return tuple(sorted(self._known.values(), key=lambda inventory: inventory.node))

    async def get(self, node: str) -> Inventory:
        await self.refresh()
        if node not in self._known:
            raise self._unknown(node)
        return self._known[node]

    async def knows(self, node: str) -> bool:
        await self.refresh()
        return node in self._known

    async def gone(self, node: str) -> Inventory:
        """The node's last inventory; refused while its worker reports."""
        inventory = await self.get(node)
        if not self._is_silent(inventory):
            raise Refused(
                reasons.NODE_IN_USE,
                f"node {node} is at work: its worker was heard of "
                f"{self._silence(inventory):.0f} s ago",
                f"stop its worker, and ask again {SILENT_AFTER_SECONDS:.0f} s later",
            )
        return inventory

    async def forget(self, node: str) -> None:
        await self._table.delete(node_key(node))
        self._known.pop(node, None)

    async def taking_jobs(self, node: str) -> Inventory:
        """The node's inventory; refused when it is unknown, silent or not ready."""
        return await self._decided(lambda: self._ready(node))

    async def holding(self, target: Target) -> Inventory:
        """The one node that reports the container; where only one node is at work, that one."""
        return await self._decided(lambda: self._holder(target))

    async def fitting(self, node: str, facts: CheckpointFacts) -> Inventory:
        """The node's inventory; refused too when its GPUs cannot take the checkpoint's."""
        return await self._decided(lambda: self._fit(node, facts))

    async def _decided(self, decide: Callable[[], Inventory]) -> Inventory:
        if self._clock() - self._read < FRESH_SECONDS:
            try:
                return decide()
            except Refused:
                await self.refresh()
        else:
            await self.refresh()
        return decide()

    def _ready(self, node: str) -> Inventory:
        inventory = self._known.get(node)
        if inventory is None:
            raise self._unknown(node)
        if problem := self._problem(inventory):
            advice = f"see `kybernate describe node {node}` and the log of its worker"
            if self._is_silent(inventory):
                advice += f"; if it will not come back: `kybernate delete node {node}`"
            raise Refused(reasons.NODE_NOT_READY, f"node {node} takes no jobs: {problem}", advice)
        return inventory

    def _problem(self, inventory: Inventory) -> str:
        if self._is_silent(inventory):
            return f"its worker was last heard of {self._silence(inventory):.0f} s ago"
        return "" if inventory.ready else inventory.problem or "its worker is not ready"

    def _is_silent(self, inventory: Inventory) -> bool:
        return self._silence(inventory) > SILENT_AFTER_SECONDS

    def _silence(self, inventory: Inventory) -> float:
        return self._clock() - inventory.at

    def _holder(self, target: Target) -> Inventory:
        everywhere = list(self._known.values())
        holders = [node for node in everywhere if target in node.containers]
        usable = [node for node in holders or everywhere if not self._problem(node)]
        if len(usable) == 1:
            return usable[0]
        if holders and usable:
            raise _ambiguous(target, usable)
        if holders or len(everywhere) == 1:
            return self._ready((holders or everywhere)[0].node)
        raise self._nowhere(target)

    def _fit(self, node: str, facts: CheckpointFacts) -> Inventory:
        inventory = self._ready(node)
        if misfit := gpu_misfit(facts.gpus, inventory.gpus):
            raise Refused(
                reasons.GPU_MISFIT,
                f"node {node} cannot take checkpoint {facts.id}: {misfit}",
                "name a node with the same GPUs: see `kybernate get nodes`",
            )
        return inventory

    def _unknown(self, node: str) -> Refused:
        known = ", ".join(sorted(self._known)) or "none"
        return Refused(
            reasons.UNKNOWN_NODE,
            f"there is no node {node!r}; known: {known}",
            "see that its worker runs and reaches NATS, and that the name is right",
        )

    def _nowhere(self, target: Target) -> Refused:
        if not self._known:
            return Refused(
                reasons.UNKNOWN_NODE,
                "no node is known yet",
                "start a worker on the node that runs the container: "
                "`kybernate worker --node NAME`",
            )
        return Refused(
            reasons.UNKNOWN_CONTAINER,
            f"no node reports a container {target.container!r} in namespace {target.namespace!r}",
            f"see that both names are right; one started in the last {HEARTBEAT_SECONDS:.0f} s "
            "may not be reported yet: name its node",
        )


def gpu_misfit(needed: tuple[GpuFacts, ...], present: tuple[GpuFacts, ...]) -> str:
    """Why a checkpoint with GPUs `needed` cannot be restored on `present`; empty when it may."""
    wanted = Counter((gpu.model, gpu.memory_bytes) for gpu in needed)
    for (model, memory), count in wanted.items():
        fitting = sum(gpu.model == model and gpu.memory_bytes >= memory for gpu in present)
        if fitting < count:
            size = f"{memory / 2**30:.0f} GiB"
            return f"it needs {count} × {model} with {size}, the node has {fitting} such"
    return ""


def _ambiguous(target: Target, holders: list[Inventory]) -> Refused:
    names = ", ".join(sorted(inventory.node for inventory in holders))
    return Refused(
        reasons.AMBIGUOUS_NODE,
        f"several nodes report a container {target.container!r} in namespace "
        f"{target.namespace!r}: {names}",
        "name the one that is meant",
    )
