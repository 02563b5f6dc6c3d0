"""What users ask for over REST: the body of POST /api/v1/actions.

A field that is not known is refused: a misspelt `leave_running` must not stop a container.
"""

import re
from typing import Annotated

from msgspec import Meta

from schemas.base import Record
from schemas.orders import PATTERNS_IN_WORDS, CheckpointId, Identifier, OutsideTcp, Place

Timeout = Annotated[float, Meta(gt=0, le=24 * 3600)]
DEFAULT_TIMEOUT_SECONDS = 600.0
DEFAULT_NAMESPACE = "default"


class CheckpointRequest(
    Record,
    frozen=True,
    kw_only=True,
    tag_field="kind",
    tag="checkpoint",
    forbid_unknown_fields=True,
):
    container: Identifier
    namespace: Identifier = DEFAULT_NAMESPACE
    node: str | None = None
    """Default: the one node that reports the container."""
    place: Place = Place.DISK
    leave_running: bool = False
    outside_tcp: OutsideTcp = OutsideTcp.CLOSE
    independent_gpu_processes: bool = False
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS


class RestoreRequest(
    Record, frozen=True, kw_only=True, tag_field="kind", tag="restore", forbid_unknown_fields=True
):
    checkpoint: CheckpointId
    node: str | None = None
    """Default: the node that holds the checkpoint."""
    container: Identifier | None = None
    """Which one of the checkpoint; default: its only one."""
    name: Identifier | None = None
    """Default: the name the container had."""
    gpu_map: dict[str, str] = {}
    """UUID at the checkpoint → UUID now; what it leaves out the node pairs itself."""
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS


class DeleteRequest(
    Record, frozen=True, kw_only=True, tag_field="kind", tag="delete", forbid_unknown_fields=True
):
    checkpoint: CheckpointId
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS


Request = CheckpointRequest | RestoreRequest | DeleteRequest


class Problem(Record, frozen=True, kw_only=True):
    """The body of every error answer."""

    message: str
    reason: str = ""
    advice: str = ""


_FIELD = re.compile(r"\A(.*) - at `\$\.([\w.]+)`\Z")
"""Where msgspec says that it is; a reader looks for that first."""


def misfit(error: Exception) -> str:
    """What does not fit in a request, with words where msgspec shows a pattern."""
    told = str(error)
    for pattern, words in PATTERNS_IN_WORDS.items():
        told = told.replace(f"`str` matching regex {pattern!r}", words)
    return _FIELD.sub(r"\2: \1", told)
