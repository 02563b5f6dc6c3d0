"""What travels between controller and node worker."""

from enum import StrEnum
from typing import Literal

import msgspec

from schemas.base import Message, Record
from schemas.failures import Failure
from schemas.manifest import CheckpointFacts
from schemas.orders import Order, Target


class Job(Message, frozen=True, kw_only=True):
    """One order for one node, part of an action.

    `attempt` is the fence: a worker that has seen a higher one for this action refuses a lower.
    """

    action: str
    attempt: int
    node: str
    order: Order
    deadline: float
    """Seconds since the epoch; the worker commits nothing after it."""

    @property
    def id(self) -> str:
        return f"{self.action}.{self.attempt}"


class EventKind(StrEnum):
    ACCEPTED = "accepted"
    STEP_STARTED = "step_started"
    PROGRESS = "progress"
    STEP_DONE = "step_done"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_EVENTS = frozenset({EventKind.COMPLETED, EventKind.FAILED, EventKind.CANCELLED})


class Restored(Record, frozen=True, kw_only=True, tag_field="kind", tag="restored"):
    """A container that runs again."""

    target: Target
    pid: int
    checkpoint: str


class Checkpointed(Record, frozen=True, kw_only=True, tag_field="kind", tag="checkpointed"):
    """A checkpoint that is durable."""

    checkpoint: CheckpointFacts


class Deleted(Record, frozen=True, kw_only=True, tag_field="kind", tag="deleted"):
    """A checkpoint whose files are gone."""

    checkpoint: str


Result = Checkpointed | Restored | Deleted


class JobEvent(Message, frozen=True, kw_only=True):
    """What a node reports about a job. `sequence` grows by one per event of an attempt."""

    action: str
    attempt: int
    sequence: int
    node: str
    kind: EventKind
    at: float
    step: str = ""
    seconds: float | None = None
    """How long the step took, when it is done."""
    done_bytes: int | None = None
    total_bytes: int | None = None
    note: str = ""
    failure: Failure | None = None
    result: Result | None = None
    """What is durable from here on: of a completed job, or of one that has only to clear up."""
    earlier: tuple["JobEvent", ...] = ()
    """Events of the same attempt that came before and travel with this one."""

    def one_by_one(self) -> tuple["JobEvent", ...]:
        """The earlier ones, then this one without them."""
        if not self.earlier:
            return (self,)
        return (*self.earlier, msgspec.structs.replace(self, earlier=()))


class Cancel(Message, frozen=True, kw_only=True):
    """Word to a node that an action is no longer wanted."""

    action: str


class Claim(Message, frozen=True, kw_only=True):
    """Who serves a node's name: asked and answered on the node's claim subject."""

    kind: Literal["ask", "mine"]
    node: str
    instance: str
