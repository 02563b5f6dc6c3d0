"""What Kybernate needs from a message bus: the protocols, their data and their errors.

`nats.py` speaks to NATS; `memory.py` behaves the same way in one process; one contract suite
holds both to it. Rules that the callers rely on:

- Every operation ends in bounded time: it is done, or it raises one of the errors here. After
  BusUnavailable it is unknown whether the operation was done: do it again (publishing carries a
  dedupe id, table writes a revision).
- The connection comes back by itself, for ever. Nothing needs to be opened again.
- What somebody wiped is told by TopologyMissing (or QueueMissing): call `ensure_topology`
  (or `ensure_queue`) and go on.
- A queue's delivery is handed out again when it was not acknowledged in time (30 s by default,
  counted anew by `keep`), and so at least once.
- A message has the W3C trace context of the moment it was published in its headers.
"""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from kybernate.problems import Expected

OPERATION_TIMEOUT_SECONDS = 5.0
"""No operation waits longer for the server."""

ACK_WAIT_SECONDS = 30.0
"""A delivery that is neither acknowledged nor kept alive for this long is handed out again."""

DEFAULT_SERVER = "nats://127.0.0.1:4222"

T = TypeVar("T")
_KEY = re.compile(r"[A-Za-z0-9_=/-]+(\.[A-Za-z0-9_=/-]+)*")


class BusProblem(Expected):
    """Whatever the message bus could not do."""


class BusUnavailable(BusProblem):
    """The message bus does not answer; it is unknown whether the operation was done."""


class TopologyMissing(BusUnavailable):
    """A stream or a bucket does not exist (any more); `ensure_topology` makes it."""


class QueueMissing(TopologyMissing):
    """A queue's consumer does not exist (any more); `ensure_queue` makes a node's."""


class Conflict(BusProblem):
    """The row is not at that revision: somebody else wrote it. Read it again, decide again."""


class TooLarge(BusProblem):
    """The message is over the size limit; nothing was sent."""


class NotPermitted(BusProblem):
    """The bus refuses this to these credentials; see the permissions in deploy/nats/."""


class BusSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the message bus is and how to prove who we are."""

    servers: tuple[str, ...] = (DEFAULT_SERVER,)
    """URLs of NATS servers, tried in turn; a user and password may stand in them."""
    credentials: Path | None = None
    """A NATS credentials file (JWT and key)."""
    tls_ca: Path | None = None
    """The authority that signed the servers' certificate, in PEM; default: the system's."""
    tls_cert: Path | None = None
    """This client's certificate, in PEM."""
    tls_key: Path | None = None
    """The key of this client's certificate, in PEM."""
    ack_wait: float = ACK_WAIT_SECONDS
    """Seconds after which a delivery that nobody answered is handed out again."""


class Row(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A value of a table at one revision."""

    key: str
    value: T
    revision: int


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """How far a table was read."""

    made: str = ""
    """Which bucket it was: one that is made anew after a wipe is another one."""
    revision: int = 0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Word that a row was written, or deleted."""

    key: str
    revision: int = 0
    """Of the row as it was written; none of a deletion."""


class Delivery(Protocol):
    """One message of a queue, to be answered by exactly one of `ack`, `later` and `drop`."""

    @property
    def subject(self) -> str: ...

    @property
    def data(self) -> bytes: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def times(self) -> int:
        """How often it was handed out: 1 at first."""

    async def ack(self) -> None:
        """Done for good; the server has confirmed it when this returns."""

    async def keep(self) -> None:
        """Still at work: counts the time until it is handed out again anew."""

    async def later(self, seconds: float) -> None:
        """Hand it out again after a while."""

    async def drop(self) -> None:
        """Never hand it out again, though it was not done."""


class Queue(Protocol):
    """A durable consumer; whoever fetches from it shares its messages."""

    async def fetch(self, count: int, *, wait: float) -> list[Delivery]:
        """Up to `count` messages as soon as there is one; none after `wait` seconds without."""


class Table(Protocol[T]):
    """A key-value bucket in which every write is compare-and-set.

    Keys are made of `[A-Za-z0-9_=/-]`, with single dots between; ValueError for others.
    """

    async def get(self, key: str) -> Row[T] | None:
        """The row as it is now; Undecodable when its bytes are no such value."""

    async def create(self, key: str, value: T) -> int:
        """The revision of the new row; Conflict when there is one already."""

    async def update(self, key: str, value: T, revision: int) -> int:
        """The new revision; Conflict when the row is not at `revision`."""

    async def put(self, key: str, value: T) -> int:
        """The new revision, whatever was there."""

    async def delete(self, key: str) -> None:
        """Remove the row; nothing happens when there is none."""

    async def all(self) -> dict[str, Row[T]]:
        """Every row that existed all through the call: complete, or an error.

        Rows that do not decode are logged and left out.
        """

    async def since(self, mark: Mark) -> tuple[dict[str, Row[T]], Mark]:
        """The rows written after that mark, and the mark for the next time; all that are there
        when nothing was read before, or when the bucket is another one by now or lost its end.

        Nothing tells of rows that were deleted.
        """

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """Rows that were written or deleted: a hint, some may get lost."""


class Bus(Protocol):
    @property
    def connected(self) -> bool: ...

    async def ensure_topology(self) -> None:
        """Make or repair streams, buckets and the controllers' consumer; safe to race."""

    async def ensure_queue(self, node: str) -> None:
        """Make the node's consumer of jobs, or leave it as it is."""

    async def publish(self, subject: str, message: msgspec.Struct, *, dedupe: str) -> None:
        """Into a stream, for good when this returns; the same `dedupe` again changes nothing."""

    async def tell(self, subject: str, message: msgspec.Struct) -> None:
        """To whoever listens right now, without any promise."""

    def listen(self, subject: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """What others `tell`; from the moment the block is entered."""

    def jobs(self, node: str) -> Queue: ...

    def events(self) -> Queue:
        """The events of all nodes, shared between all controllers."""

    def table(self, bucket: str, of: type[T]) -> Table[T]: ...


def check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} cannot be a key: use letters, digits and -_=/ with single dots")
