"""What all structs share, and the one way to encode and to decode them."""

from types import UnionType
from typing import Any, TypeVar, overload

import msgspec

WIRE_VERSION = 1

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Frozen data. A reader ignores fields it does not know, so optional ones can be added."""


class Message(Record, frozen=True, kw_only=True, tag_field="version", tag=WIRE_VERSION):
    """A record that stands alone on a wire or on disk: its version is always written with it."""


class Undecodable(ValueError):
    """The bytes are not a message of this version."""


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)


@overload
def decode(raw: bytes, of: type[T]) -> T: ...
@overload
def decode(raw: bytes, of: UnionType) -> Any: ...
def decode(raw: bytes, of: Any) -> Any:
    """The record in the bytes, or Undecodable with the place and the reason."""
    try:
        return msgspec.json.decode(raw, type=of)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Undecodable(f"{error}{_advice(str(error))}") from error


def _advice(error: str) -> str:
    if not error.endswith("`$.version`"):
        return ""
    return (
        f": only version {WIRE_VERSION} is known here; "
        "update this program or the one that sent the message"
    )
