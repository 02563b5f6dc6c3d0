"""How a failure is told, everywhere: which step, why, and what to do."""

from schemas.base import Record


class Failure(Record, frozen=True, kw_only=True):
    reason: str
    """A constant of `schemas.reasons`."""
    message: str
    advice: str = ""
    step: str = ""
    retriable: bool = False
    """Another attempt may succeed without anybody changing anything."""
