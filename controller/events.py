"""Takes in what the nodes report: decode, fold into the action, act, acknowledge.

All controllers share one durable consumer. What arrives is folded action by action, one write for
all events at hand: reports of steps wait a moment for more of them, the end of a job never waits.
An event is acknowledged only when it was folded; one that cannot be decoded is ended.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from controller.engine import Engine
from controller.topology import repaired
from kybernate.bus.port import Bus, BusProblem, Delivery
from kybernate.problems import trace_of
from kybernate.tasks import for_ever, jittered
from schemas.base import Undecodable, decode
from schemas.messages import TERMINAL_EVENTS, JobEvent

BATCH: Final = 256
WAIT_SECONDS: Final = 4.0
LINGER_SECONDS: Final = 0.025
"""How long the report of a step waits for more."""
LOST_AFTER_TIMES: Final = 4
"""Handed out so often without its action in sight, an event belongs to a lost one."""
LATER_SECONDS: Final = 1.0
LATEST_SECONDS: Final = 60.0

log = logging.getLogger(__name__)


class Received(msgspec.Struct, frozen=True, kw_only=True):
    event: JobEvent
    delivery: Delivery


class Events:
    def __init__(self, bus: Bus, engine: Engine) -> None:
        self._bus = bus
        self._engine = engine
        self._held: dict[str, list[Received]] = {}

    async def run(self) -> None:
        """Fetch one batch after the other, whatever still becomes of the ones before.

        The consumer's limit of unacknowledged events limits what is under way.
        """
        async with asyncio.TaskGroup() as tasks:

            async def fetch_and_fold() -> None:
                for action in await self._hold_batch(WAIT_SECONDS):
                    tasks.create_task(self._settle(action))

            await for_ever(fetch_and_fold, name="taking in events", longest=5.0)

    async def take_batch(self, *, wait: float = WAIT_SECONDS) -> int:
        """Fold what is there, or what comes within `wait` seconds; of how many actions it was."""
        actions = await self._hold_batch(wait)
        await asyncio.gather(*map(self._settle, actions))
        return len(actions)

    async def _hold_batch(self, wait: float) -> set[str]:
        """The actions that the batch is about; their events are held until they settle."""
        queue = self._bus.events()
        deliveries = await repaired(self._bus, lambda: queue.fetch(BATCH, wait=wait))
        actions = set()
        for delivery in deliveries:
            event = await _decoded(delivery)
            if event is not None:
                received = Received(event=event, delivery=delivery)
                self._held.setdefault(event.action, []).append(received)
                actions.add(event.action)
        return actions

    async def _settle(self, action: str) -> None:
        if not any(one.event.kind in TERMINAL_EVENTS for one in self._held.get(action, ())):
            await asyncio.sleep(LINGER_SECONDS)
        batch = self._held.pop(action, None)
        if batch is not None:
            await self._fold(action, batch)

    async def _fold(self, action: str, batch: Sequence[Received]) -> None:
        try:
            await self._fold_or_wait(action, batch)
        except Exception as error:
            log.warning(
                "events of action %s were not taken in: %s; they come again",
                action,
                error,
                exc_info=trace_of(error),
            )
            await _all_later(batch)

    async def _fold_or_wait(self, action: str, batch: Sequence[Received]) -> None:
        events = [event for received in batch for event in received.event.one_by_one()]
        if await self._engine.fold(action, events) is None:
            if any(received.delivery.times < LOST_AFTER_TIMES for received in batch):
                await _all_later(batch)
                return
            log.info("events of action %s, which is lost: only its checkpoint counts", action)
            await self._engine.take_truths(events)
        await _all_acknowledged(batch)


async def _decoded(delivery: Delivery) -> JobEvent | None:
    try:
        return decode(delivery.data, JobEvent)
    except Undecodable as error:
        log.warning("dropped what is no event, on %s: %s", delivery.subject, error)
        with suppress(BusProblem):  # it comes again, to be dropped then
            await delivery.drop()
        return None


async def _all_acknowledged(batch: Sequence[Received]) -> None:
    if len(batch) == 1:  # the common case, without a task of its own
        await batch[0].delivery.ack()
    else:
        await asyncio.gather(*(received.delivery.ack() for received in batch))


async def _all_later(batch: Sequence[Received]) -> None:
    """Failing here is harmless: what is not answered is handed out again."""
    answers = (received.delivery.later(_pause(received.delivery.times)) for received in batch)
    await asyncio.gather(*answers, return_exceptions=True)


def _pause(times: int) -> float:
    return jittered(min(LATEST_SECONDS, LATER_SECONDS * 2.0 ** min(times - 1, 10)))
