"""What users can ask of a controller, whatever the wire they ask over."""

import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from controller import refusals
from controller.catalogue import Catalogue
from controller.engine import Engine
from controller.machine import NotAllowed
from controller.nodes import Nodes
from controller.records import Records
from controller.refusals import Refused
from kybernate import telemetry
from kybernate.bus.port import BusProblem, Conflict
from kybernate.tasks import jittered
from schemas import reasons
from schemas.actions import Action, ActionState
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.manifest import CheckpointFacts, PartFacts
from schemas.messages import Deleted
from schemas.nodes import DeletedNode, Inventory
from schemas.orders import (
    CheckpointOrder,
    DeleteOrder,
    Order,
    Place,
    RestoreOrder,
    Target,
    only_part,
    verb,
)
from schemas.requests import CheckpointRequest, DeleteRequest, Request, RestoreRequest

UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The shape of every id: of an action, and so of the checkpoint that it makes."""
POLL_SECONDS: Final = 1.0
"""How often a watched action is read anew, should every hint get lost."""
FIRST_POLL_SECONDS: Final = 0.2
"""When for the first time: what is at hand may be old."""


class Service:
    def __init__(
        self,
        engine: Engine,
        records: Records,
        catalogue: Catalogue,
        nodes: Nodes,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._records = records
        self._catalogue = catalogue
        self._nodes = nodes
        self._clock = clock

    async def request(
        self, request: Request, *, key: str | None = None, labels: dict[str, str] | None = None
    ) -> Action:
        """Record what is asked for and get it on its way. The same key again: the same action."""
        if key is not None and (seen := self._records.seen(key)):
            return _same(seen.value, request)
        action = key or str(uuid.uuid4())
        try:
            node, order = await self._placed(action, request)
            new = self._new(action, node, order, request.timeout, labels or {})
            if isinstance(order, DeleteOrder) and not await self._nodes.knows(node):
                new = await self._deleted_with_its_node(new, order)
            return await self._engine.start(new)
        except (Refused, Conflict):  # perhaps because another controller was asked for it before
            if (known := await self._records.at_hand(action)) is None:
                raise
            return _same(known.value, request)

    async def cancel(self, action: str) -> Action:
        _check_action(action)
        try:
            cancelled = await self._engine.cancel(action)
        except NotAllowed as error:
            raise refusals.already_ended(action, error.state.value) from error
        if cancelled is None:
            raise refusals.unknown_action(action)
        return cancelled

    async def action(self, action: str) -> Action:
        _check_action(action)
        row = await self._records.read(action)
        if row is None:
            raise refusals.unknown_action(action)
        return row.value

    async def actions(
        self, *, kind: str | None = None, state: ActionState | None = None
    ) -> list[Action]:
        return [
            action
            for action in await self._records.all()
            if kind in {None, action.kind} and state in {None, action.state}
        ]

    async def watch(self, action: str) -> AsyncIterator[Action | None]:
        """The action now and at every change, up to its end; None when there was no news."""
        _check_action(action)
        with self._records.watchers.watch(action) as watch:
            if (row := await self._records.at_hand(action)) is None:
                raise refusals.unknown_action(action)
            seen, pause = row.value, FIRST_POLL_SECONDS
            yield seen
            while not seen.ended and not self._records.watchers.closing:
                newer = await watch.next(jittered(pause)) or await self._reread(seen)
                pause = POLL_SECONDS
                if newer == seen or newer.updated < seen.updated:
                    yield None
                    continue
                seen = newer
                yield seen

    async def _reread(self, seen: Action) -> Action:
        """As it is now; as it was seen while NATS does not answer."""
        try:
            return await self.action(seen.id)
        except BusProblem:
            return seen

    async def checkpoints(self) -> tuple[CatalogueEntry, ...]:
        return await self._catalogue.all()

    async def checkpoint(self, checkpoint: str) -> CatalogueEntry:
        entry = await self._catalogue.get(checkpoint) if UUID.fullmatch(checkpoint) else None
        if entry is None:
            raise refusals.unknown_checkpoint(checkpoint)
        return entry

    async def nodes(self) -> tuple[Inventory, ...]:
        return await self._nodes.all()

    async def node(self, node: str) -> Inventory:
        return await self._nodes.get(node)

    async def delete_node(self, node: str) -> DeletedNode:
        """Forget a node that is gone; its checkpoints stay, as missing, until it comes back."""
        await self._nodes.gone(node)
        missing = await self._catalogue.mark_missing(node, f"its node {node} was deleted")
        await self._nodes.forget(node)
        return DeletedNode(node=node, missing=missing)

    async def _deleted_with_its_node(self, action: Action, order: DeleteOrder) -> Action:
        """There is nobody to ask: that nobody is to look for it any more is all that is done."""
        await self._catalogue.mark_deleted(order.checkpoint)
        result = Deleted(checkpoint=order.checkpoint)
        return msgspec.structs.replace(action, state=ActionState.COMPLETED, result=result)

    def _new(
        self, action: str, node: str, order: Order, timeout: float, labels: dict[str, str]
    ) -> Action:
        now = self._clock()
        return Action(
            id=action,
            kind=verb(order),
            node=node,
            order=order,
            state=ActionState.PENDING,
            created=now,
            updated=now,
            deadline=now + timeout,
            traceparent=telemetry.traceparent(),
            labels=labels,
        )

    async def _placed(self, action: str, request: Request) -> tuple[str, Order]:
        match request:
            case CheckpointRequest():
                return await self._placed_checkpoint(action, request)
            case RestoreRequest():
                return await self._placed_restore(request)
            case DeleteRequest():
                return await self._placed_delete(request)

    async def _placed_checkpoint(
        self, action: str, request: CheckpointRequest
    ) -> tuple[str, Order]:
        if request.place is Place.MEMORY and request.leave_running:
            raise Refused(
                reasons.INVALID_REQUEST,
                "what waits in memory is frozen there, so it cannot be left running",
                "leave out leave_running (--leave-running), or checkpoint to disk",
            )
        target = Target(namespace=request.namespace, container=request.container)
        if request.node is None:
            inventory = await self._nodes.holding(target)
        else:
            inventory = await self._nodes.taking_jobs(request.node)
        return inventory.node, _checkpoint_order(action, request)

    async def _placed_restore(self, request: RestoreRequest) -> tuple[str, Order]:
        entry = await self._kept(request.checkpoint)
        facts = entry.facts
        node, place = request.node or facts.node, Place(facts.place)
        if entry.state is CheckpointState.MISSING and node == facts.node:
            raise refusals.missing_checkpoint(facts.id, node, entry.problem)
        part = _part(facts, request.container)
        if request.gpu_map and not facts.gpus:
            raise refusals.no_gpu_to_map(facts.id)
        if place is Place.MEMORY and (node != facts.node or _renamed(request, part.target)):
            raise _stays_where_it_is(request, facts.node)
        if place is Place.MEMORY:
            await self._nodes.taking_jobs(node)
        else:
            await self._nodes.fitting(node, facts)
        container = request.name or part.target.container
        target = Target(namespace=part.target.namespace, container=container)
        return node, RestoreOrder(
            checkpoint=facts.id,
            part=part.name,
            target=target,
            place=place,
            digest=facts.digest,
            gpu_map=request.gpu_map,
        )

    async def _placed_delete(self, request: DeleteRequest) -> tuple[str, Order]:
        entry = await self._kept(request.checkpoint)
        facts = entry.facts
        for other in self._records.unfinished():
            if other.order.checkpoint == facts.id and await self._goes_on(other):
                raise refusals.checkpoint_in_use(facts.id, other.id)
        if entry.state is CheckpointState.READY or await self._nodes.knows(facts.node):
            await self._nodes.taking_jobs(facts.node)
        return facts.node, DeleteOrder(checkpoint=facts.id)

    async def _goes_on(self, action: Action) -> bool:
        """Asked of the bucket: another controller may have ended it a moment ago."""
        row = await self._records.read(action.id)
        return row is not None and not row.value.ended

    async def _kept(self, checkpoint: str) -> CatalogueEntry:
        entry = await self.checkpoint(checkpoint)
        if entry.state is CheckpointState.DELETED:
            raise refusals.deleted_checkpoint(checkpoint)
        return entry


def _check_action(action: str) -> None:
    if not UUID.fullmatch(action):
        raise refusals.unknown_action(action)


def _checkpoint_order(checkpoint: str, request: CheckpointRequest) -> CheckpointOrder:
    return CheckpointOrder(
        parts=only_part(Target(namespace=request.namespace, container=request.container)),
        checkpoint=checkpoint,
        place=request.place,
        leave_running=request.leave_running,
        outside_tcp=request.outside_tcp,
        independent_gpu_processes=request.independent_gpu_processes,
    )


def _part(facts: CheckpointFacts, name: str | None) -> PartFacts:
    """The container that is meant."""
    meant = [part for part in facts.parts if name in {None, part.name}]
    if len(meant) == 1:
        return meant[0]
    names = ", ".join(part.name for part in facts.parts)
    raise Refused(
        reasons.INVALID_REQUEST,
        f"checkpoint {facts.id} is of {names}; "
        + ("one container at a time resumes" if name is None else f"it has no container {name}"),
        "name one of them (--container)",
    )


def _renamed(request: RestoreRequest, target: Target) -> bool:
    return request.name not in {None, target.container}


def _stays_where_it_is(request: RestoreRequest, node: str) -> Refused:
    return Refused(
        reasons.INVALID_REQUEST,
        f"checkpoint {request.checkpoint} is in the memory of node {node}: its container can "
        "only resume there, under its own name",
        "leave out the node and the name",
    )


def _same(known: Action, request: Request) -> Action:
    """The action that this key asked for before, when it asked for the same."""
    if not _asks_for(known.order, request):
        raise refusals.key_of_another(known.id)
    return known


def _asks_for(order: Order, request: Request) -> bool:
    match order, request:
        case CheckpointOrder(), CheckpointRequest():
            return order == _checkpoint_order(order.checkpoint, request)
        case RestoreOrder(), RestoreRequest():
            same = (order.checkpoint, order.gpu_map) == (request.checkpoint, request.gpu_map)
            same = same and request.container in {None, order.part}
            return same and request.name in {None, order.target.container}
        case DeleteOrder(), DeleteRequest():
            return order.checkpoint == request.checkpoint
    return False
