"""One worker per node: a second one of the same name ends with an error before it does harm.

On one state folder a lock file decides. Elsewhere the name does: a starting worker asks on the
node's claim subject, whoever serves the node answers. Of two that start at the same moment, the
one whose instance name sorts first stays.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from kybernate import tasks
from kybernate.bus import Bus, BusUnavailable
from kybernate.lock import Locked, locked
from schemas.base import Undecodable, decode
from schemas.messages import Claim
from schemas.names import claim_subject

LISTEN_SECONDS: Final = 0.5


class NodeTaken(Exception):
    """Another worker serves this node already; stop it, or choose another name (--node)."""


@contextmanager
def alone_in(lock: Path) -> Iterator[None]:
    """Hold the state folder's lock; NodeTaken while another worker does."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock))
        except Locked as holder:
            raise NodeTaken(
                f"worker process {holder} uses {lock.parent} already; "
                "stop it, or choose another folder (--state)"
            ) from holder
        yield


class NodeClaim:
    """Asks for a node's name, then answers for it."""

    def __init__(self, bus: Bus, node: str, instance: str) -> None:
        self._bus = bus
        self._subject = claim_subject(node)
        self._ask = Claim(kind="ask", node=node, instance=instance)
        self._mine = Claim(kind="mine", node=node, instance=instance)

    async def take(self) -> None:
        """Return when nobody else has the name; wait for the bus as long as it takes."""
        failures = 0
        while True:
            try:
                return await self._take()
            except BusUnavailable:
                failures += 1
                await asyncio.sleep(tasks.backoff(failures, longest=5.0))

    async def run_answering(self) -> None:
        """Answer whoever asks, until cancelled."""
        await tasks.for_ever(self._answer, name="answering for the node's name", longest=5.0)

    async def _take(self) -> None:
        async with self._bus.listen(self._subject) as words:
            await self._bus.tell(self._subject, self._ask)
            with contextlib.suppress(TimeoutError):  # nobody objects
                async with asyncio.timeout(LISTEN_SECONDS):
                    await self._objection(words)

    async def _objection(self, words: AsyncIterator[bytes]) -> None:
        async for other in _claims(words):
            if other.instance == self._ask.instance:
                continue
            if other.kind == "mine" or other.instance < self._ask.instance:
                raise NodeTaken(
                    f"worker {other.instance} serves node {self._ask.node} already; "
                    "stop it, or choose another name (--node)"
                )
            await self._bus.tell(self._subject, self._mine)

    async def _answer(self) -> None:
        async with self._bus.listen(self._subject) as words:
            async for other in _claims(words):
                if other.kind == "ask" and other.instance != self._mine.instance:
                    await self._bus.tell(self._subject, self._mine)


async def _claims(words: AsyncIterator[bytes]) -> AsyncIterator[Claim]:
    async for raw in words:
        with contextlib.suppress(Undecodable):  # not a claim, so nobody's
            yield decode(raw, Claim)
