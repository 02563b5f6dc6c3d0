"""Protocol Buffers on the wire, field by field, for messages of which a few fields are known.

What is not known is kept byte for byte, so a message can be changed without its full description.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

VARINT: Final = 0
_FIXED64: Final = 1
BYTES: Final = 2
_FIXED32: Final = 5
_FIXED_SIZES: Final = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES: Final = 10


class Malformed(ValueError):
    """The bytes are no message."""


class Field(msgspec.Struct, frozen=True):
    number: int
    kind: int
    value: int | bytes


def decode(raw: bytes) -> list[Field]:
    return list(_fields(raw))


def encode(fields: Sequence[Field]) -> bytes:
    return b"".join(_encoded(field) for field in fields)


def number(fields: Sequence[Field], wanted: int, default: int = 0) -> int:
    """The value of an integer field; the last one counts, as everywhere in Protocol Buffers."""
    values = numbers(fields, wanted)
    return values[-1] if values else default


def numbers(fields: Sequence[Field], wanted: int) -> list[int]:
    """The values of a repeated integer field, packed or not."""
    found: list[int] = []
    for field in fields:
        if field.number == wanted:
            found.extend(_unpacked(field.value))
    return found


def blob(fields: Sequence[Field], wanted: int) -> bytes | None:
    """The bytes of a field: a text or a message."""
    for field in reversed(fields):
        if field.number == wanted and isinstance(field.value, bytes):
            return field.value
    return None


def without(fields: Sequence[Field], *unwanted: int) -> list[Field]:
    return [field for field in fields if field.number not in unwanted]


def _fields(raw: bytes) -> Iterator[Field]:
    position = 0
    while position < len(raw):
        key, position = _varint(raw, position)
        kind = key & 7
        if kind == VARINT:
            value, position = _varint(raw, position)
            yield Field(key >> 3, kind, value)
            continue
        if kind == BYTES:
            length, position = _varint(raw, position)
        elif kind in _FIXED_SIZES:
            length = _FIXED_SIZES[kind]
        else:
            raise Malformed(f"a field of the unknown kind {kind}")
        if position + length > len(raw):
            raise Malformed("a field reaches beyond the message's end")
        yield Field(key >> 3, kind, raw[position : position + length])
        position += length


def _encoded(field: Field) -> bytes:
    key = _varint_bytes(field.number << 3 | field.kind)
    if isinstance(field.value, int):
        return key + _varint_bytes(field.value)
    length = _varint_bytes(len(field.value)) if field.kind == BYTES else b""
    return key + length + field.value


def _unpacked(value: int | bytes) -> Iterator[int]:
    if isinstance(value, int):
        yield value
        return
    position = 0
    while position < len(value):
        one, position = _varint(value, position)
        yield one


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(raw):
            raise Malformed("a number reaches beyond the message's end")
        byte = raw[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says another byte follows
            return value, position + index + 1
    raise Malformed("a number of more than 64 bits")


def _varint_bytes(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
