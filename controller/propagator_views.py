"""Actions and checkpoints in the propagator's words."""

from collections.abc import Iterable
from datetime import UTC, datetime

from controller.propagator_types import (
    ActionStatus,
    ActionType,
    CheckpointStatus,
    PodAction,
    PodCheckpoint,
    PodStatus,
)
from schemas.actions import Action, ActionState
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.messages import Checkpointed
from schemas.nodes import Inventory
from schemas.orders import CheckpointOrder, DeleteOrder, RestoreOrder, Target

REASON = "reason"
CLUSTER = "cluster_id"
HEARTBEAT = "heartbeat"
SEAL_STEP = "seal"
"""The step after which a checkpoint is durable."""

_STATUS: dict[ActionState, ActionStatus] = {
    ActionState.PENDING: "initialized",
    ActionState.DISPATCHED: "initialized",
    ActionState.RUNNING: "processing",
    ActionState.COMPLETED: "ready",
    ActionState.FAILED: "error",
    ActionState.CANCELLED: "error",
}
_CHECKPOINT_STATUS: dict[CheckpointState, CheckpointStatus] = {
    CheckpointState.READY: "ready",
    CheckpointState.MISSING: "deprecated",
    CheckpointState.DELETED: "deprecated",
}


def target_of(action: Action) -> Target | None:
    """The container, or the first of several."""
    return next(iter(_targets_of(action)), None)


def _targets_of(action: Action) -> tuple[Target, ...]:
    match action.order:
        case CheckpointOrder(parts=parts):
            return tuple(part.target for part in parts)
        case RestoreOrder(target=target):
            return (target,)
        case DeleteOrder():
            return ()


def type_of(action: Action) -> ActionType:
    if isinstance(action.order, RestoreOrder):
        return "restore_pod"
    return "heartbeat" if action.labels.get(REASON) == HEARTBEAT else "checkpoint_pod"


def status_of(action: Action) -> PodStatus:
    target = target_of(action)
    return PodStatus(
        status=_status(action),
        action_id=action.id,
        pod_id=target.container if target else "",
        details=_details(action),
    )


def action_of(
    action: Action, entry: CatalogueEntry | None, nodes: dict[str, Inventory]
) -> PodAction:
    target = target_of(action)
    facts = entry.facts if entry else None
    inventory = nodes.get(action.node)
    made = facts is not None and isinstance(action.result, Checkpointed)
    return PodAction(
        action_id=action.id,
        checkpoint_id=action.order.checkpoint,
        status=_status(action),
        type=type_of(action),
        details=_details(action),
        gpu=bool(facts and facts.gpus),
        platform=inventory.host.architecture if inventory else "",
        checkpoint_status=_CHECKPOINT_STATUS[entry.state] if entry else None,
        checkpoint_name=target.container if target else "",
        checksum=facts.digest if facts else "",
        node_name=action.node,
        reason=action.labels.get(REASON, ""),
        total_duration=action.updated - action.created if action.ended else None,
        total_io=facts.size if facts else None,
        workload_kind="pod",
        action_timestamp=_time(action.created),
        checkpoint_completed_timestamp=_time(facts.created) if made and facts else "",
    )


def checkpoint_of(entry: CatalogueEntry, nodes: dict[str, Inventory]) -> PodCheckpoint:
    facts = entry.facts
    inventory = nodes.get(facts.node)
    target = facts.parts[0].target
    return PodCheckpoint(
        id=facts.id,
        checkpoint_id=facts.id,
        action_id=facts.id,
        status=_CHECKPOINT_STATUS[entry.state],
        pod_id=target.container,
        namespace=target.namespace,
        node_name=facts.node,
        gpu=bool(facts.gpus),
        platform=inventory.host.architecture if inventory else "",
        size=facts.size,
        checksum=facts.digest,
        checkpoint_completed_timestamp=_time(facts.created),
    )


def latest_of_pod(actions: Iterable[Action], pod: str) -> Action | None:
    of_pod = [one for one in actions if pod in {each.container for each in _targets_of(one)}]
    return max(of_pod, key=lambda one: one.created, default=None)


def _status(action: Action) -> ActionStatus:
    durable = isinstance(action.order, CheckpointOrder) and any(
        step.step == SEAL_STEP and step.seconds is not None for step in action.steps
    )
    return "checkpoint_created" if durable and not action.ended else _STATUS[action.state]


def _details(action: Action) -> str:
    if action.failure is not None:
        advice = f"; {action.failure.advice}" if action.failure.advice else ""
        return f"{action.failure.reason}: {action.failure.message}{advice}"
    return action.steps[-1].step if action.steps and not action.ended else ""


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
