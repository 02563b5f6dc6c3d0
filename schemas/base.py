"""What all structs share, and the one way to encode and to decode them."""

import threading
from types import UnionType
from typing import Any, TypeVar, overload

import msgspec

WIRE_VERSION = 1

T = TypeVar("T")

_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_making_one = threading.Lock()


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Frozen data. A reader ignores fields it does not know, so optional ones can be added."""


class Message(Record, frozen=True, kw_only=True, tag_field="version", tag=WIRE_VERSION):
    """A record that stands alone on a wire or on disk: its version is always written with it."""


class Undecodable(ValueError):
    """The bytes are not a message of this version."""


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)


@overload
def decoder(of: type[T]) -> msgspec.json.Decoder[T]: ...
@overload
def decoder(of: UnionType) -> msgspec.json.Decoder[Any]: ...
def decoder(of: Any) -> Any:
    """The one decoder of that type, for whoever wants msgspec's own errors.

    msgspec finds out about a struct when it is first named to it. A thread that decodes the same
    struct meanwhile ends the process (SIGSEGV, msgspec 0.22). So one thread at a time has a decoder
    made, and nobody sees it before that.
    """
    if (known := _decoders.get(of)) is not None:
        return known
    with _making_one:
        return _decoders.setdefault(of, msgspec.json.Decoder(of))


@overload
def decode(raw: bytes, of: type[T]) -> T: ...
@overload
def decode(raw: bytes, of: UnionType) -> Any: ...
def decode(raw: bytes, of: Any) -> Any:
    """The record in the bytes, or Undecodable with the place and the reason."""
    try:
        return decoder(of).decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Undecodable(f"{error}{_advice(str(error))}") from error


def _advice(error: str) -> str:
    if not error.endswith("`$.version`"):
        return ""
    return (
        f": only version {WIRE_VERSION} is known here; "
        "update this program or the one that sent the message"
    )
