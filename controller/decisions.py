"""What goes into the state machine and what comes out of it."""

import msgspec

from schemas.actions import Action
from schemas.manifest import CheckpointFacts
from schemas.messages import Job, JobEvent


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """The job of this attempt lies in the stream, and was on its way there at this time."""

    attempt: int
    at: float


class CancelAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody no longer wants the action."""


class TimePassed(msgspec.Struct, frozen=True, kw_only=True):
    """Do what is due now."""


Input = Published | CancelAsked | TimePassed | JobEvent


class PublishJob(msgspec.Struct, frozen=True, kw_only=True):
    """Publish the job, then apply `Published`."""

    job: Job


class TellCancel(msgspec.Struct, frozen=True, kw_only=True):
    """Tell the node that the action is no longer wanted."""

    node: str
    action: str


class RecordCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint is durable: it belongs into the catalogue."""

    facts: CheckpointFacts


class MarkDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint is gone: the catalogue has to say so."""

    checkpoint: str


Command = PublishJob | TellCancel | RecordCheckpoint | MarkDeleted


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of an action. Commands of the catalogue come before its record is written."""

    action: Action
    commands: tuple[Command, ...] = ()
