"""Tells the controllers what happens to jobs.

Events about steps are best effort: they wait in memory, and are lost with the process or when
too many wait. A job's last event lies in the ledger and is published until the server has it.
One loop publishes both, one message for each job that has something to say.

Sequences: events of a job count up; each further worker process that takes the job up begins
`RUN_SEQUENCES` higher, and the one last event has the highest sequence there is. So whatever a
dead process has still sent, nothing overtakes the end, and repeating it is always the same.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from kybernate import tasks
from kybernate.bus import Bus, TopologyMissing
from node_worker.ledger import Ledger
from schemas.failures import Failure
from schemas.messages import TERMINAL_EVENTS, EventKind, Job, JobEvent, Result
from schemas.names import event_subject

log = logging.getLogger(__name__)

RUN_SEQUENCES: Final = 1_000_000
LAST_SEQUENCE: Final = 2**31 - 1
BATCH: Final = 128
STEPS_WAIT_SECONDS: Final = 0.1
"""How long an event about a step waits for others to travel with; nobody watches more closely."""
WAITING: Final = 2048
"""Step events kept while the server is away; older ones are dropped."""
HINTS: Final = frozenset({EventKind.ACCEPTED, EventKind.STEP_STARTED, EventKind.PROGRESS})
"""Events that say nothing any more once the job has ended."""


class Reporter:
    def __init__(self, bus: Bus, node: str, ledger: Ledger) -> None:
        self._bus = bus
        self._node = node
        self._ledger = ledger
        self._steps: deque[JobEvent] = deque(maxlen=WAITING)
        self._wake = asyncio.Event()
        self._wake.set()  # what an earlier process has left untold
        self._later: asyncio.TimerHandle | None = None
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def listener(self, job: Job, run: int) -> "JobListener":
        return JobListener(job, run, self._take)

    def ended(self, job: str) -> "asyncio.Future[None]":
        """Done when the server has the job's last event, which the ledger holds already."""
        self.wake()
        if job not in self._waiting:
            self._waiting[job] = asyncio.get_running_loop().create_future()
        return self._waiting[job]

    def wake(self) -> None:
        """There is something to publish."""
        self._wake.set()

    async def run(self) -> None:
        """Publish, until cancelled."""
        await tasks.for_ever(self._round, name="reporting to the controllers", longest=5.0)

    async def publish(self) -> None:
        """Publish what there is, once."""
        ends = self._ledger.untold(BATCH)
        waiting, self._steps = self._steps, deque(maxlen=WAITING)
        await self._publish(bundled([*waiting, *(event for _, event in ends)]))
        self._told([job for job, _ in ends])
        if len(ends) == BATCH:
            self.wake()

    def _take(self, event: JobEvent) -> None:
        self._steps.append(event)
        if self._later is None:
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(STEPS_WAIT_SECONDS, self._steps_have_waited)

    def _steps_have_waited(self) -> None:
        self._later = None
        self.wake()

    async def _round(self) -> None:
        await self._wake.wait()
        self._wake.clear()
        try:
            await self.publish()
        except TopologyMissing:
            self.wake()
            await self._bus.ensure_topology()
        except BaseException:
            self.wake()
            raise

    def _told(self, jobs: list[str]) -> None:
        if jobs:
            self._ledger.told(jobs)
        for job in jobs:
            if (waiting := self._waiting.pop(job, None)) and not waiting.done():
                waiting.set_result(None)

    async def _publish(self, events: list[JobEvent]) -> None:
        """All of them at once; the first problem is raised when all have ended."""
        results = await asyncio.gather(
            *(self._publish_one(event) for event in events), return_exceptions=True
        )
        told = list(zip(events, results, strict=True))
        self._keep(event for event, problem in told if problem is not None)
        for problem in results:
            if problem is not None:
                raise problem

    def _keep(self, bundles: Iterable[JobEvent]) -> None:
        """Steps that could not be told go before those that have come since; ends are kept by
        the ledger.
        """
        untold = [event for bundle in bundles for event in bundle.one_by_one()]
        steps = [event for event in untold if event.kind not in TERMINAL_EVENTS]
        self._steps = deque([*steps, *self._steps], maxlen=WAITING)

    async def _publish_one(self, event: JobEvent) -> None:
        dedupe = f"{event.action}.{event.attempt}.{event.sequence}"
        await self._bus.publish(event_subject(self._node, event.kind), event, dedupe=dedupe)


def bundled(events: Iterable[JobEvent]) -> list[JobEvent]:
    """One event for each attempt: its last, with the earlier ones that still say something."""
    by_attempt: dict[tuple[str, int], dict[tuple[str, str, str], JobEvent]] = {}
    for event in events:
        newest = by_attempt.setdefault((event.action, event.attempt), {})
        said = (event.kind, event.step, event.note)
        newest.pop(said, None)
        newest[said] = event
    return [_bundle(list(newest.values())) for newest in by_attempt.values()]


def _bundle(events: list[JobEvent]) -> JobEvent:
    last = events.pop()
    if last.kind in TERMINAL_EVENTS:
        events = [event for event in events if event.kind not in HINTS or event.note]
    return msgspec.structs.replace(last, earlier=tuple(events)) if events else last


class JobListener:
    """Makes the events of one job out of what its executor tells."""

    def __init__(self, job: Job, run: int, take: Callable[[JobEvent], None]) -> None:
        self._job = job
        self._next = (run - 1) * RUN_SEQUENCES
        self._take = take

    def accepted(self) -> None:
        self._take(self._event(EventKind.ACCEPTED, step=""))

    def started(self, step: str) -> None:
        self._take(self._event(EventKind.STEP_STARTED, step=step))

    def progress(self, step: str, done_bytes: int, total_bytes: int) -> None:
        self._take(
            self._event(
                EventKind.PROGRESS, step=step, done_bytes=done_bytes, total_bytes=total_bytes
            )
        )

    def durable(self, step: str, result: Result) -> None:
        self._take(self._event(EventKind.PROGRESS, step=step, result=result))

    def remark(self, step: str, words: str) -> None:
        self._take(self._event(EventKind.PROGRESS, step=step, note=words))

    def done(self, step: str, seconds: float) -> None:
        self._take(self._event(EventKind.STEP_DONE, step=step, seconds=seconds))

    def undone(self, step: str, seconds: float) -> None:
        self._take(self._event(EventKind.STEP_DONE, step=step, seconds=seconds, note="undone"))

    def _event(
        self,
        kind: EventKind,
        *,
        step: str,
        seconds: float | None = None,
        done_bytes: int | None = None,
        total_bytes: int | None = None,
        note: str = "",
        result: Result | None = None,
    ) -> JobEvent:
        sequence, self._next = self._next, self._next + 1
        return JobEvent(
            action=self._job.action,
            attempt=self._job.attempt,
            sequence=sequence,
            node=self._job.node,
            kind=kind,
            at=time.time(),
            step=step,
            seconds=seconds,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            note=note,
            result=result,
        )


def last_event(
    job: Job,
    kind: EventKind,
    *,
    failure: Failure | None = None,
    result: Result | None = None,
    note: str = "",
) -> JobEvent:
    """The one event that ends a job."""
    if kind not in TERMINAL_EVENTS:
        raise ValueError(f"{kind} ends no job")
    return JobEvent(
        action=job.action,
        attempt=job.attempt,
        sequence=LAST_SEQUENCE,
        node=job.node,
        kind=kind,
        at=time.time(),
        failure=failure,
        result=result,
        note=note,
    )
