"""Streams and their consumers, as far as the in-memory bus needs them."""

import asyncio
import re
import time
from collections.abc import Mapping

import msgspec


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    sequence: int
    subject: str
    data: bytes
    headers: Mapping[str, str]


class MemoryStream:
    """`once`: a work queue, in which a message that is done is gone."""

    def __init__(self, subjects: str, *, once: bool, ack_wait: float) -> None:
        self.subjects = subjects
        self.once = once
        self.messages: dict[int, Stored] = {}
        self.consumers: dict[str, Consumer] = {}
        self.duplicates = 0
        self._ack_wait = ack_wait
        self._sequence = 0
        self._seen: set[str] = set()

    def add(self, subject: str, data: bytes, headers: Mapping[str, str], dedupe: str) -> None:
        if dedupe in self._seen:
            return
        self._seen.add(dedupe)
        self._sequence += 1
        stored = Stored(sequence=self._sequence, subject=subject, data=data, headers=headers)
        self.messages[stored.sequence] = stored
        for consumer in self.consumers.values():
            consumer.offer(stored)

    def ensure(self, name: str, pattern: str) -> None:
        if name in self.consumers:
            return
        consumer = self.consumers[name] = Consumer(self, pattern, self._ack_wait)
        for stored in self.messages.values():
            consumer.offer(stored)

    def wake(self) -> None:
        for consumer in self.consumers.values():
            consumer.wake()


class Consumer:
    def __init__(self, stream: MemoryStream, pattern: str, ack_wait: float) -> None:
        self._stream = stream
        self._pattern = pattern
        self._ack_wait = ack_wait
        self._due: dict[int, float] = {}
        self._times: dict[int, int] = {}
        self._something = asyncio.Event()

    def offer(self, stored: Stored) -> None:
        if matches(self._pattern, stored.subject):
            self._due[stored.sequence] = 0.0
            self.wake()

    def wake(self) -> None:
        self._something.set()

    def take(self, count: int) -> list[tuple[Stored, int]]:
        now = time.monotonic()
        ready = [sequence for sequence, due in self._due.items() if due <= now]
        return [self._hand_out(sequence, now) for sequence in ready[:count]]

    def _hand_out(self, sequence: int, now: float) -> tuple[Stored, int]:
        self._times[sequence] = self._times.get(sequence, 0) + 1
        self._due[sequence] = now + self._ack_wait
        if self._stream.duplicates:
            self._stream.duplicates -= 1
            self._due[sequence] = now
        return self._stream.messages[sequence], self._times[sequence]

    def done(self, stored: Stored) -> None:
        self._due.pop(stored.sequence, None)
        if self._stream.once:
            self._stream.messages.pop(stored.sequence, None)

    def again_after(self, stored: Stored, seconds: float) -> None:
        if stored.sequence in self._due:
            self._due[stored.sequence] = time.monotonic() + seconds
            self.wake()

    async def something(self, seconds: float) -> None:
        """Return when a message may be ready, or after the time."""
        self._something.clear()
        soonest = min(self._due.values(), default=float("inf")) - time.monotonic()
        try:
            async with asyncio.timeout(max(0.001, min(seconds, soonest))):
                await self._something.wait()
        except TimeoutError:
            return


def matches(pattern: str, subject: str) -> bool:
    """NATS's wildcards: `*` is one token, `>` the rest."""
    parts = [
        {"*": r"[^.]+", ">": r".+"}.get(token) or re.escape(token) for token in pattern.split(".")
    ]
    return re.fullmatch(r"\.".join(parts), subject) is not None
