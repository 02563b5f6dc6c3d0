"""Checkpoints in the catalogue: the record in the checkpoints bucket."""

from enum import StrEnum

from schemas.base import Message
from schemas.manifest import CheckpointFacts


class CheckpointState(StrEnum):
    READY = "ready"
    DELETED = "deleted"
    """Its files are gone; kept so that a question about it has an answer."""


class CatalogueEntry(Message, frozen=True, kw_only=True):
    facts: CheckpointFacts
    state: CheckpointState
    updated: float
