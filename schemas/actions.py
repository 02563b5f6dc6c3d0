"""Actions: what somebody asked for and how far it is. The record in the actions bucket."""

from enum import StrEnum

from schemas.base import Message, Record
from schemas.failures import Failure
from schemas.messages import Result
from schemas.orders import Order


class ActionState(StrEnum):
    PENDING = "pending"
    """Recorded; its job is not known to be published."""
    DISPATCHED = "dispatched"
    """Its job lies in the stream."""
    RUNNING = "running"
    """A worker accepted it."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_STATES = frozenset({ActionState.COMPLETED, ActionState.FAILED, ActionState.CANCELLED})


class StepProgress(Record, frozen=True, kw_only=True):
    step: str
    started: float
    seconds: float | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    note: str = ""


class Action(Message, frozen=True, kw_only=True):
    """One thing somebody asked for. `attempt` counts from 1 and travels as the job's fence."""

    id: str
    kind: str
    """checkpoint, restore or delete: the order's verb."""
    node: str
    order: Order
    state: ActionState
    attempt: int = 1
    created: float
    updated: float
    deadline: float
    not_before: float = 0.0
    """No attempt is dispatched earlier: the pause before another try."""
    dispatched: float | None = None
    sequence: int = -1
    """The highest event of this attempt that was taken in."""
    steps: tuple[StepProgress, ...] = ()
    cancel_requested: bool = False
    earlier_failures: tuple[Failure, ...] = ()
    """Why earlier attempts ended."""
    failure: Failure | None = None
    result: Result | None = None
    """Durable, even if the action has not ended yet."""
    traceparent: str = ""
    labels: dict[str, str] = {}
    """What the one who asked wants to find again; nothing here acts on it."""

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STATES
