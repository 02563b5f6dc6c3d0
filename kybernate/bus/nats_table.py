"""A NATS key-value bucket as a table.

Writes are publications that name the revision they expect. Reads are direct gets. A bucket keeps
one message per key, so reading its stream from the first message to the last is reading all rows:
a row that is written meanwhile moves to the end and is met there. No watch is trusted with that.
What was decoded for the last reading of all rows is not decoded again, told by the time to the
nanosecond at which it was stored: revisions begin anew when somebody wipes the bucket.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import msgspec
from nats.aio.msg import Msg

from kybernate.bus.link import Link
from kybernate.bus.nats_queue import DESCRIPTION, STATUS
from kybernate.bus.port import (
    OPERATION_TIMEOUT_SECONDS,
    BusUnavailable,
    Change,
    Conflict,
    Mark,
    Row,
    TopologyMissing,
    check_key,
)
from kybernate.bus.publishing import check_size, publish
from kybernate.bus.topology import (
    ApiAnswer,
    api_problem,
    bucket_stream,
    bucket_subject,
    changed_subject,
    end_of,
)
from schemas.base import Undecodable, decode, decoder, encode

T = TypeVar("T")
log = logging.getLogger(__name__)

_EXPECTED_REVISION = "Nats-Expected-Last-Subject-Sequence"
_OPERATION = "KV-Operation"
_REVISION = "Nats-Sequence"
_SUBJECT = "Nats-Subject"
_STORED = "Nats-Time-Stamp"
_BEFORE = "Nats-Last-Sequence"
_NOT_FOUND = "404"
_NO_RESPONDERS = "503"
_END_OF_BATCH = "204"
_BATCH = 1000


class BatchGet(msgspec.Struct, frozen=True, kw_only=True):
    seq: int
    batch: int
    next_by_subj: str


class NatsTable(Generic[T]):
    def __init__(self, link: Link, bucket: str, of: type[T]) -> None:
        self._link = link
        self._bucket = bucket
        self._of = of
        self._get_call = f"$JS.API.DIRECT.GET.{bucket_stream(bucket)}"
        self._prefix = bucket_subject(bucket, "")
        self._decoded: dict[tuple[str, str], Row[T]] = {}

    async def get(self, key: str) -> Row[T] | None:
        message = await self._stored(key)
        if message is None or _deleted(message):
            return None
        value = decode(message.data, self._of)
        return Row(key=key, value=value, revision=_number(message, _REVISION))

    async def create(self, key: str, value: T) -> int:
        try:
            return await self._write(key, value, 0)
        except Conflict:
            marker = await self._stored(key)
            if marker is None or not _deleted(marker):
                raise
            return await self._write(key, value, _number(marker, _REVISION))

    async def update(self, key: str, value: T, revision: int) -> int:
        return await self._write(key, value, revision)

    async def put(self, key: str, value: T) -> int:
        return await self._write(key, value, None)

    async def delete(self, key: str) -> None:
        check_key(key)
        subject = bucket_subject(self._bucket, key)
        call = f"$JS.API.STREAM.PURGE.{bucket_stream(self._bucket)}"
        reply = await self._link.request(call, msgspec.json.encode({"filter": subject}))
        self._refuse_missing(reply)
        answer = decoder(ApiAnswer).decode(reply.data)
        if answer.error is not None:
            raise api_problem(f"delete {key} from {self._bucket}", answer.error)
        await self._link.send(changed_subject(self._bucket, key), b"")

    async def all(self) -> dict[str, Row[T]]:
        return (await self._read_all())[0]

    async def since(self, mark: Mark) -> tuple[dict[str, Row[T]], Mark]:
        rows, revision = await self._read_after(mark.revision, self._decoded)
        end = await end_of(self._link, bucket_stream(self._bucket))
        if end.made != mark.made or end.revision < mark.revision:
            rows, revision = await self._read_all()
        return rows, Mark(made=end.made, revision=revision)

    async def _read_all(self) -> tuple[dict[str, Row[T]], int]:
        decoded: dict[tuple[str, str], Row[T]] = {}
        rows, last = await self._read_after(0, decoded)
        self._decoded = decoded
        return rows, last

    async def _read_after(
        self, position: int, decoded: dict[tuple[str, str], Row[T]]
    ) -> tuple[dict[str, Row[T]], int]:
        """The rows behind that revision, and the last one's; what is decoded is noted."""
        rows: dict[str, Row[T]] = {}
        while messages := await self._batch_after(position):
            for message in messages:
                self._fold(rows, decoded, message)
            position = _number(messages[-1], _REVISION)
        return rows, position

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[Change]]:
        told: asyncio.Queue[Msg] = asyncio.Queue()
        everything = changed_subject(self._bucket, ">")
        async with self._link.listening(everything, told.put_nowait):
            yield _each(told, len(changed_subject(self._bucket, "")))

    async def _write(self, key: str, value: T, revision: int | None) -> int:
        check_key(key)
        payload = encode(value)  # type: ignore[arg-type] # every T of a table is a struct
        check_size(key, payload)
        headers = None if revision is None else {_EXPECTED_REVISION: str(revision)}
        subject = bucket_subject(self._bucket, key)
        return await publish(self._link, subject, payload, headers)

    async def _stored(self, key: str) -> Msg | None:
        check_key(key)
        call = f"{self._get_call}.{bucket_subject(self._bucket, key)}"
        reply = await self._link.request(call, b"")
        self._refuse_missing(reply)
        return None if _status(reply) == _NOT_FOUND else reply

    async def _batch_after(self, position: int) -> list[Msg]:
        """The next stored messages, none missing between them; none at all after the last."""
        request = BatchGet(seq=position + 1, batch=_BATCH, next_by_subj=f"{self._prefix}>")
        messages: list[Msg] = []

        def take(message: Msg) -> None:
            if _status(message):
                wait.end(message)
            else:
                messages.append(message)

        with self._link.replies.waiting(self._get_call, OPERATION_TIMEOUT_SECONDS, take) as wait:
            await self._link.send(self._get_call, msgspec.json.encode(request), reply=wait.reply)
            last = await wait.answered
        self._refuse_missing(last)
        if _status(last) == _NOT_FOUND:
            return []
        if _status(last) != _END_OF_BATCH or not _unbroken([*messages, last]):
            raise BusUnavailable(f"NATS did not send all of {self._bucket}; it will next time")
        return messages

    def _fold(
        self, rows: dict[str, Row[T]], decoded: dict[tuple[str, str], Row[T]], message: Msg
    ) -> None:
        headers = message.headers or {}
        key, stored = headers[_SUBJECT][len(self._prefix) :], headers[_STORED]
        rows.pop(key, None)
        if _deleted(message):
            return
        row = self._decoded.get((key, stored)) or self._row(key, message)
        if row is not None:
            rows[key] = decoded[key, stored] = row

    def _row(self, key: str, message: Msg) -> Row[T] | None:
        try:
            value = decode(message.data, self._of)
        except Undecodable as error:
            log.warning("left out %s of %s, which does not decode: %s", key, self._bucket, error)
            return None
        return Row(key=key, value=value, revision=_number(message, _REVISION))

    def _refuse_missing(self, reply: Msg) -> None:
        if _status(reply) == _NO_RESPONDERS:
            raise TopologyMissing(f"the bucket {self._bucket} does not exist on NATS")
        if _status(reply) not in {"", _NOT_FOUND, _END_OF_BATCH}:
            said = (reply.headers or {}).get(DESCRIPTION, "")
            raise BusUnavailable(f"NATS did not read {self._bucket}: {_status(reply)} {said}")


async def _each(told: asyncio.Queue[Msg], prefix: int) -> AsyncIterator[Change]:
    while True:
        message = await told.get()
        revision = int((message.headers or {}).get(_REVISION, 0))
        yield Change(key=message.subject[prefix:], revision=revision)


def _unbroken(messages: list[Msg]) -> bool:
    """Every message names the one before it, and the first one none."""
    named = [_number(message, _BEFORE) for message in messages]
    return named == [0, *(_number(message, _REVISION) for message in messages[:-1])]


def _deleted(message: Msg) -> bool:
    """A marker that other tools of NATS leave where a key was."""
    return (message.headers or {}).get(_OPERATION) in {"DEL", "PURGE"}


def _number(message: Msg, header: str) -> int:
    return int((message.headers or {})[header])


def _status(message: Msg) -> str:
    return (message.headers or {}).get(STATUS, "")
