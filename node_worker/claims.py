"""Which jobs exclude each other: two on one container, or a deletion beside a restore.

A job takes its claims when it is accepted and gives them back when it has ended.
"""

import msgspec

from schemas import reasons
from schemas.failures import Failure
from schemas.orders import CheckpointOrder, DeleteOrder, Order, RestoreOrder, Target

WAIT = "Wait until it has ended (`kybernate get actions`), then ask again."


class _Wants(msgspec.Struct, frozen=True, kw_only=True):
    containers: frozenset[Target] = frozenset()
    makes_or_deletes: str = ""
    reads: str = ""


class Claims:
    """What the jobs at work have claimed."""

    def __init__(self) -> None:
        self._held: dict[str, _Wants] = {}

    def take(self, job: str, order: Order) -> Failure | None:
        """Claim what the order needs, all or nothing; why not, where another job has it."""
        wants = _wants(order)
        for other, held in self._held.items():
            if failure := _conflict(wants, held, other):
                return failure
        self._held[job] = wants
        return None

    def give_back(self, job: str) -> None:
        self._held.pop(job, None)


def _wants(order: Order) -> _Wants:
    match order:
        case CheckpointOrder():
            targets = frozenset(part.target for part in order.parts)
            return _Wants(containers=targets, makes_or_deletes=order.checkpoint)
        case RestoreOrder():
            return _Wants(containers=frozenset((order.target,)), reads=order.checkpoint)
        case DeleteOrder():
            return _Wants(makes_or_deletes=order.checkpoint)


def _conflict(wants: _Wants, held: _Wants, other: str) -> Failure | None:
    if both := wants.containers & held.containers:
        names = ", ".join(sorted(target.container for target in both))
        return Failure(
            reason=reasons.CONTAINER_BUSY,
            message=f"job {other} is at work on container {names}",
            advice=WAIT,
        )
    theirs = {held.makes_or_deletes, held.reads}
    mine = wants.makes_or_deletes
    if (mine and mine in theirs) or (wants.reads and wants.reads == held.makes_or_deletes):
        return Failure(
            reason=reasons.CHECKPOINT_IN_USE,
            message=f"job {other} is at work on checkpoint {mine or wants.reads}",
            advice=WAIT,
        )
    return None
