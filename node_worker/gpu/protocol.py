"""The messages between the worker and its GPU helper process: msgpack behind a 4-byte length."""

import struct
from typing import TypeVar

import msgspec

from schemas.base import Record
from schemas.gpus import GpuFacts, GpuProcess

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
LENGTH = struct.Struct(">I")

T = TypeVar("T")


class AskFacts(Record, frozen=True, kw_only=True, tag="facts"):
    """The GPUs, or why there are none."""


class AskProcesses(Record, frozen=True, kw_only=True, tag="processes"):
    pids: tuple[int, ...]


class AskState(Record, frozen=True, kw_only=True, tag="state"):
    pid: int


class Lock(Record, frozen=True, kw_only=True, tag="lock"):
    pid: int
    timeout: float


class Checkpoint(Record, frozen=True, kw_only=True, tag="checkpoint"):
    pid: int


class Restore(Record, frozen=True, kw_only=True, tag="restore"):
    pid: int
    pairs: dict[str, str] | None = None


class Unlock(Record, frozen=True, kw_only=True, tag="unlock"):
    pid: int


Step = Lock | Checkpoint | Restore | Unlock
"""What changes the state of a process."""

Call = AskFacts | AskProcesses | AskState | Step


class Request(Record, frozen=True, kw_only=True):
    id: int
    call: Call
    again: bool = False
    """An earlier helper may have done it already: then nothing is left to do."""


class Fault(Record, frozen=True, kw_only=True):
    code: str
    """The driver's name for the error; empty for an error of the helper itself."""
    message: str = ""


class Inventory(Record, frozen=True, kw_only=True):
    gpus: tuple[GpuFacts, ...] = ()
    absence: str = ""


class Reply(Record, frozen=True, kw_only=True):
    id: int
    fault: Fault | None = None
    inventory: Inventory | None = None
    processes: tuple[GpuProcess, ...] = ()
    state: str = ""


class BrokenStream(Exception):
    """What came is no message; the two sides no longer understand each other."""


def frame(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def body_length(head: bytes) -> int:
    (length,) = LENGTH.unpack(head)
    if length > MAX_MESSAGE_BYTES:
        raise BrokenStream(f"a message of {length} bytes was announced")
    return int(length)


def request_in(body: bytes) -> Request:
    return _parsed(_REQUESTS, body)


def reply_in(body: bytes) -> Reply:
    return _parsed(_REPLIES, body)


def _parsed(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise BrokenStream(str(error)) from error


# Made before there are threads that decode some of the same structs: see schemas.base.decoder.
_REQUESTS = msgspec.msgpack.Decoder(Request)
_REPLIES = msgspec.msgpack.Decoder(Reply)
