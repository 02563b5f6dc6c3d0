"""Takes jobs out of the node's queue and answers for them.

Fetched in batches, decoded, handed to `Jobs`; each delivery is kept alive while its job is at
work and acknowledged when the server has the job's last event. What does not decode, or is for
another node, is ended: it will never be anything else. A stop acknowledges nothing that is
unfinished, so it comes again.
"""

import asyncio
import logging
from typing import Final

from kybernate import tasks
from kybernate.bus import Bus, BusProblem, Delivery, TopologyMissing
from kybernate.telemetry import TRACEPARENT
from node_worker.jobs import Ended, Jobs
from node_worker.settings import WorkerSettings
from schemas.base import Undecodable, decode
from schemas.messages import Cancel, Job
from schemas.names import cancel_subject

log = logging.getLogger(__name__)

WINDOW: Final = 128
"""Deliveries at hand at once; more of them wait in the stream."""
FETCH_SECONDS: Final = 4.0
ACK_TRIES: Final = 5


class Intake:
    def __init__(self, bus: Bus, settings: WorkerSettings, jobs: Jobs) -> None:
        self._bus = bus
        self._node = node = settings.node
        self._keep_seconds = settings.bus.ack_wait / 3
        self._jobs = jobs
        self._queue = bus.jobs(node)
        self._at_hand: dict[asyncio.Task[None], Delivery] = {}
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._fetching())
                group.create_task(self._keeping())
                group.create_task(self._cancelling())
        finally:
            await self._let_go()

    async def _fetching(self) -> None:
        await tasks.for_ever(self._round, name="fetching jobs", longest=5.0)

    async def _round(self) -> None:
        while (room := WINDOW - len(self._at_hand)) <= 0:
            self._room.clear()
            await self._room.wait()
        try:
            deliveries = await self._queue.fetch(room, wait=FETCH_SECONDS)
        except TopologyMissing:
            log.info("node %s has no queue yet, or lost it; making one", self._node)
            await self._make_queue()
            return
        await self._take_in(deliveries)

    async def _make_queue(self) -> None:
        """A worker's credentials may allow its own queue, and not the streams."""
        try:
            await self._bus.ensure_queue(self._node)
        except TopologyMissing:
            await self._bus.ensure_topology()
            await self._bus.ensure_queue(self._node)

    async def _take_in(self, deliveries: list[Delivery]) -> None:
        jobs: list[tuple[Delivery, Job]] = []
        for delivery in deliveries:
            if (job := self._job_in(delivery)) is not None:
                jobs.append((delivery, job))
            else:
                await delivery.drop()
        ends = self._jobs.submit([(job, _parent(delivery)) for delivery, job in jobs])
        for (delivery, job), ended in zip(jobs, ends, strict=True):
            self._tend(delivery, job, ended)

    def _job_in(self, delivery: Delivery) -> Job | None:
        try:
            job = decode(delivery.data, Job)
        except Undecodable as error:
            log.warning("a message on %s is no job and is dropped: %s", delivery.subject, error)
            return None
        if job.node != self._node:
            log.error("job %s is for node %s, not for %s: dropped", job.id, job.node, self._node)
            return None
        return job

    def _tend(self, delivery: Delivery, job: Job, ended: Ended) -> None:
        task = asyncio.create_task(self._answer(delivery, job, ended), name=f"answer {job.id}")
        self._at_hand[task] = delivery
        task.add_done_callback(self._answered)

    def _answered(self, task: "asyncio.Task[None]") -> None:
        del self._at_hand[task]
        self._room.set()

    async def _answer(self, delivery: Delivery, job: Job, ended: Ended) -> None:
        await asyncio.shield(ended)
        for failures in range(1, ACK_TRIES + 1):
            try:
                return await delivery.ack()
            except BusProblem as error:
                log.warning("cannot acknowledge job %s: %s", job.id, error)
            await asyncio.sleep(tasks.backoff(failures))
        return None  # it is handed out again, and known then

    async def _keeping(self) -> None:
        """Keep what is at hand from being handed out again."""

        async def keep() -> None:
            for delivery in list(self._at_hand.values()):
                await delivery.keep()

        pause = self._keep_seconds
        await tasks.for_ever(keep, name="keeping jobs", pause=pause, longest=pause)

    async def _cancelling(self) -> None:
        await tasks.for_ever(self._hear_cancels, name="hearing cancellations", longest=5.0)

    async def _hear_cancels(self) -> None:
        async with self._bus.listen(cancel_subject(self._node)) as words:
            async for raw in words:
                try:
                    self._jobs.cancel(decode(raw, Cancel).action)
                except Undecodable as error:
                    log.warning("a message on the cancel subject does not decode: %s", error)

    async def _let_go(self) -> None:
        for task in list(self._at_hand):
            await tasks.end(task)


def _parent(delivery: Delivery) -> str:
    return delivery.headers.get(TRACEPARENT, "")
