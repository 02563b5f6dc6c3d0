"""Checkpoints in the catalogue: the record in the checkpoints bucket."""

from enum import StrEnum

from schemas.base import WIRE_VERSION, Record
from schemas.manifest import CheckpointFacts


class CheckpointState(StrEnum):
    READY = "ready"
    DELETED = "deleted"
    """Its files are gone; kept so that a question about it has an answer."""


class CatalogueEntry(Record, frozen=True, kw_only=True):
    version: int = WIRE_VERSION
    facts: CheckpointFacts
    state: CheckpointState
    updated: float
