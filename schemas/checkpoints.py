"""Checkpoints in the catalogue: the record in the checkpoints bucket."""

from enum import StrEnum

from schemas.base import Message, Record
from schemas.manifest import CheckpointFacts


class CheckpointState(StrEnum):
    READY = "ready"
    MISSING = "missing"
    """Its node does not have it any more; ready again as soon as it has."""
    DELETED = "deleted"
    """Its files are gone; kept so that a question about it has an answer."""


class Heir(Record, frozen=True, kw_only=True):
    """The pod that an owner made in the place of the one that was checkpointed and ended."""

    claim: str
    """UID of the admission request that promised it the checkpoint; of the pod, if none did."""
    since: float
    pod: str = ""
    """Its name, once it was seen."""
    started: bool = False
    """It has run, so no other pod comes into its place by itself."""


class CatalogueEntry(Message, frozen=True, kw_only=True):
    facts: CheckpointFacts
    state: CheckpointState
    updated: float
    problem: str = ""
    """Why it is missing."""
    heir: Heir | None = None
