"""Conditions of custom resources: their reasons, and how they follow from each other. Pure.

Ready is always there; Reconciling while work goes on, Stalled when nothing more will happen by
itself. A failure's own reason stands in Stalled, Ready says only that there was one.
"""

from datetime import UTC, datetime
from typing import Final

import msgspec

from schemas.kubernetes import Condition

READY: Final = "Ready"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"

# As upstream's PodCheckpoint names them
CHECKPOINT_IN_PROGRESS: Final = "CheckpointInProgress"
CHECKPOINT_COMPLETED: Final = "CheckpointCompleted"
CHECKPOINT_FAILED: Final = "CheckpointFailed"
SOURCE_POD_REPLACED: Final = "SourcePodReplaced"

# A checkpoint's pod
SOURCE_POD_NOT_FOUND: Final = "SourcePodNotFound"
POD_NOT_RUNNING: Final = "PodNotRunning"
POD_TERMINATING: Final = "PodTerminating"
CONTAINER_NOT_FOUND: Final = "ContainerNotFound"
RUNTIME_UNSUPPORTED: Final = "RuntimeUnsupported"
POD_UNSUPPORTED: Final = "PodUnsupported"
VOLUME_CANNOT_COME_ALONG: Final = "VolumeCannotComeAlong"

# Any resource
NOT_SERVED: Final = "NotServed"
SPEC_CHANGED: Final = "SpecChanged"
DELETE_WAITS: Final = "DeleteWaits"

# A restore
RESTORE_IN_PROGRESS: Final = "RestoreInProgress"
RESTORE_COMPLETED: Final = "RestoreCompleted"
RESTORE_FAILED: Final = "RestoreFailed"
CHECKPOINT_NOT_READY: Final = "CheckpointNotReady"
CHECKPOINT_NOT_FOUND: Final = "CheckpointNotFound"
CHECKPOINT_UNUSABLE: Final = "CheckpointUnusable"
OTHER_NAMESPACE: Final = "CheckpointOfAnotherNamespace"
NODE_LACKS_CHECKPOINT: Final = "NodeLacksCheckpoint"
POD_NAME_TAKEN: Final = "PodNameTaken"
POD_REFUSED: Final = "PodRefused"
POD_FAILED: Final = "PodFailed"
POD_DELETED: Final = "PodDeleted"

# A new pod of a Deployment, StatefulSet or Job
RESUMED: Final = "Resumed"
WAITS_FOR_NODE: Final = "WaitsForNode"
STARTED_FROM_IMAGE: Final = "StartedFromImage"


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why something is not done: a constant, and words that say what to do."""

    reason: str
    message: str


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions as they were, for those that come next."""

    before: tuple[Condition, ...]
    generation: int
    now: float

    def working(self, reason: str, message: str) -> tuple[Condition, ...]:
        return (
            self._one(READY, "False", reason, message),
            self._one(RECONCILING, "True", reason, message),
        )

    def done(self, reason: str, message: str) -> tuple[Condition, ...]:
        return (self._one(READY, "True", reason, message),)

    def failed(self, reason: str, refusal: Refusal) -> tuple[Condition, ...]:
        return (
            self._one(READY, "False", reason, refusal.message),
            self._one(STALLED, "True", refusal.reason, refusal.message),
        )

    def edited(self, message: str) -> tuple[Condition, ...]:
        """As before, and stalled: what was asked for does not change any more."""
        kept = tuple(one for one in self.before if one.type != STALLED)
        return (*kept, self._one(STALLED, "True", SPEC_CHANGED, message))

    def _one(self, kind: str, status: str, reason: str, message: str) -> Condition:
        old = next((one for one in self.before if one.type == kind), None)
        since = old.last_transition_time if old and old.status == status else timestamp(self.now)
        return msgspec.convert(
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": since,
                "observedGeneration": self.generation,
            },
            Condition,
        )


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def duration(seconds: float) -> str:
    """As kubectl writes an age: 0.4s, 12s, 3m20s."""
    if seconds < 10:  # noqa: PLR2004 - where tenths stop to matter
        return f"{max(seconds, 0.0):.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def size(count: int) -> str:
    """As a quantity of Kubernetes: 512, 4Ki, 1.2Gi."""
    value, units = float(count), ["", "Ki", "Mi", "Gi", "Ti"]
    while value >= 1024 and len(units) > 1:  # noqa: PLR2004 - a binary unit
        value, units = value / 1024, units[1:]
    return f"{value:.1f}".removesuffix(".0") + units[0]
