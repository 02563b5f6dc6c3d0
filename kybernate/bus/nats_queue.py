"""A JetStream pull consumer as a queue.

A fetch first takes what lies ready and only then waits, for one message: so nothing is ever on
its way to a fetch that has returned, and a message is not held where nobody works on it.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Final

import msgspec
from nats.aio.msg import Msg

from kybernate.bus.link import Link
from kybernate.bus.port import (
    OPERATION_TIMEOUT_SECONDS,
    BusUnavailable,
    Delivery,
    QueueMissing,
)
from kybernate.bus.replies import Wait

STATUS: Final = "Status"
DESCRIPTION: Final = "Description"

_NOTHING_THERE = frozenset({"404", "408"})
_NO_RESPONDERS = "503"
_HEARTBEAT = "100"
_SHORT_ACK_TOKENS = 9
_LONGEST_WAIT_SECONDS = 5.0
_READY_SECONDS = 0.5
"""The server holds even what lies ready while too much is in flight; it comes to a later fetch."""


class PullRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    batch: int
    no_wait: bool = False
    expires: int = 0
    """Nanoseconds."""


class NatsDelivery:
    """A message of a JetStream consumer; its reply subject says where it stands."""

    __slots__ = ("_link", "_message")

    def __init__(self, link: Link, message: Msg) -> None:
        self._link = link
        self._message = message

    @property
    def subject(self) -> str:
        return self._message.subject

    @property
    def data(self) -> bytes:
        return self._message.data

    @property
    def headers(self) -> Mapping[str, str]:
        return self._message.headers or {}

    @property
    def times(self) -> int:
        tokens = self._message.reply.split(".")
        return int(tokens[4] if len(tokens) == _SHORT_ACK_TOKENS else tokens[6])

    async def ack(self) -> None:
        await self._answer(b"+ACK")

    async def keep(self) -> None:
        await self._answer(b"+WPI")

    async def later(self, seconds: float) -> None:
        await self._answer(b'-NAK {"delay": %d}' % int(seconds * 1e9))

    async def drop(self) -> None:
        await self._answer(b"+TERM")

    async def _answer(self, word: bytes) -> None:
        reply = await self._link.request(self._message.reply, word)
        if (reply.headers or {}).get(STATUS) == _NO_RESPONDERS:
            raise QueueMissing(f"the queue that handed out {self.subject} is gone")


class NatsQueue:
    def __init__(self, link: Link, lifetime: AsyncExitStack, *, stream: str, consumer: str) -> None:
        self._link = link
        self._lifetime = lifetime
        self._name = f"{stream}/{consumer}"
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = f"{link.inbox}.{consumer}"
        self._listens = False
        self._turn = asyncio.Lock()
        self._arrived: deque[Msg] = deque()
        self._round: Round | None = None

    async def fetch(self, count: int, *, wait: float) -> list[Delivery]:
        async with self._turn:
            if not self._link.connected:
                await self._link.ready()
            await self._listen()
            if not self._arrived:
                await self._pull_ready(count)
            if not self._arrived and wait > 0:
                await self._pull_one(min(wait, _LONGEST_WAIT_SECONDS))
            return [self._delivery() for _ in range(min(count, len(self._arrived)))]

    def _delivery(self) -> NatsDelivery:
        return NatsDelivery(self._link, self._arrived.popleft())

    async def _listen(self) -> None:
        if not self._listens:
            listening = self._link.listening(f"{self._inbox}.*", self._take)
            await self._lifetime.enter_async_context(listening)
            self._listens = True

    async def _pull_ready(self, count: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_READY_SECONDS):
                request = PullRequest(batch=count, no_wait=True)
                await self._pull(request, patience=OPERATION_TIMEOUT_SECONDS)

    async def _pull_one(self, wait: float) -> None:
        request = PullRequest(batch=1, expires=int(wait * 1e9))
        await self._pull(request, patience=wait + OPERATION_TIMEOUT_SECONDS)

    async def _pull(self, request: PullRequest, *, patience: float) -> None:
        """Ask for messages, and wait until the server has sent the last of them."""
        with self._link.replies.waiting(self._next, patience) as wait:
            self._round = Round(wait, request.batch)
            try:
                reply = f"{self._inbox}.{self._round.token}"
                await self._link.send(self._next, msgspec.json.encode(request), reply=reply)
                self._judge(await wait.answered)
            finally:
                self._round = None

    def _take(self, message: Msg) -> None:
        """A message of the queue, or word on how the asking ended."""
        current = self._round
        if message.reply:
            self._arrived.append(message)
            if current is not None and current.counted():
                current.end(message)
            return
        about_this_round = current is not None and message.subject.endswith(f".{current.token}")
        if current is not None and about_this_round and _status(message) != _HEARTBEAT:
            current.end(message)

    def _judge(self, last: Msg) -> None:
        """Raise for an ending that is neither a message nor that there was none."""
        status = _status(last)
        if last.reply or status in _NOTHING_THERE or self._arrived:
            return
        said = (last.headers or {}).get(DESCRIPTION, "").strip()
        if status == _NO_RESPONDERS or said == "Consumer Deleted":
            raise QueueMissing(f"the queue {self._name} does not exist on NATS")
        raise BusUnavailable(f"NATS ended the wait for {self._name}: {status} {said}")


class Round:
    """One asking: how many messages may still come, and who waits for the last."""

    __slots__ = ("_left", "_wait", "token")

    def __init__(self, wait: Wait, left: int) -> None:
        self._wait = wait
        self._left = left
        self.token = wait.reply.rpartition(".")[2]

    def counted(self) -> bool:
        """One more has come; whether it was the last."""
        self._left -= 1
        return self._left <= 0

    def end(self, message: Msg) -> None:
        self._wait.end(message)


def _status(message: Msg) -> str:
    return (message.headers or {}).get(STATUS, "")
