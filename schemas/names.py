"""Every name that two processes must agree on: subjects, streams, consumers, buckets, folders.

A node's name may hold anything; a NATS subject token may not. `node_token` writes every byte
outside `[A-Za-z0-9-]` as `_` and two hexadecimal digits, so that ordinary names stay readable
and every name has exactly one token.
"""

import re

JOBS_STREAM = "KYBERNATE_JOBS"
EVENTS_STREAM = "KYBERNATE_EVENTS"

ACTIONS_BUCKET = "kybernate_actions"
NODES_BUCKET = "kybernate_nodes"
CHECKPOINTS_BUCKET = "kybernate_checkpoints"
BUCKETS = (ACTIONS_BUCKET, NODES_BUCKET, CHECKPOINTS_BUCKET)

JOB_SUBJECTS = "kybernate.job.>"
EVENT_SUBJECTS = "kybernate.event.>"
CONTROLLERS = "controllers"

MAX_MESSAGE_BYTES = 512 * 1024
"""Below the 1 MiB of a NATS server's default, with room for headers."""

MAX_NODE_NAME_BYTES = 63 * 4

_PLAIN = re.compile(rb"[A-Za-z0-9-]")
_TOKEN = re.compile(r"(?:[A-Za-z0-9-]|_[0-9a-f]{2})+\Z")
_EMPTY = "_"


def node_token(node: str) -> str:
    """The one subject token of a node's name."""
    raw = node.encode("utf-8", "surrogatepass")
    return "".join(_token_of_byte(bytes((byte,))) for byte in raw) or _EMPTY


def node_name(token: str) -> str:
    """The node's name that `node_token` was given; ValueError for a token it never makes."""
    if token == _EMPTY:
        return ""
    if not _TOKEN.match(token):
        raise ValueError(f"{token!r} is not the token of a node's name")
    raw = re.sub(rb"_([0-9a-f]{2})", lambda hit: bytes.fromhex(hit[1].decode()), token.encode())
    name = raw.decode("utf-8", "surrogatepass")
    if node_token(name) != token:
        raise ValueError(f"{token!r} is not the token of a node's name")
    return name


def job_subject(node: str, verb: str) -> str:
    return f"kybernate.job.{node_token(node)}.{verb}"


def job_subjects_of(node: str) -> str:
    return f"kybernate.job.{node_token(node)}.*"


def event_subject(node: str, kind: str) -> str:
    return f"kybernate.event.{node_token(node)}.{kind}"


def cancel_subject(node: str) -> str:
    """Core NATS: word that an action is no longer wanted. A hint that is repeated, never kept."""
    return f"kybernate.cancel.{node_token(node)}"


def claim_subject(node: str) -> str:
    """Core NATS: where the worker of a node answers, so that a second one of that name notices."""
    return f"kybernate.claim.{node_token(node)}"


def worker_consumer(node: str) -> str:
    return f"worker-{node_token(node)}"


def node_key(node: str) -> str:
    """The key of a node in the nodes bucket."""
    return node_token(node)


def _token_of_byte(byte: bytes) -> str:
    return byte.decode() if _PLAIN.match(byte) else f"_{byte[0]:02x}"
