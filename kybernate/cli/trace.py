"""The trace of a request begins here: its ids travel in the `traceparent` header."""

import secrets
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec


class TracedRequest(msgspec.Struct, frozen=True, kw_only=True):
    action: str
    """The id that the action is given, and the idempotency key of the order."""
    headers: Mapping[str, str]


@contextmanager
def request() -> Iterator[TracedRequest]:
    parent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    yield TracedRequest(action=str(uuid.uuid4()), headers={"traceparent": parent})
