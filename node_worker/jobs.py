"""What the worker does with a job: accept it, walk its plan, write down and tell its end.

Every job at work is a task of its own, named after it and kept until it has ended; `close` calls
all of them off and waits. At most `LIMIT` walk at once, the others wait for their turn. What an
earlier process has left open, and what could not be brought to its end, `take_up_open` takes up.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from kybernate import tasks, telemetry
from node_worker.claims import Claims
from node_worker.executor import Actor, Executor, Observer, Outcome, Stop, observe_nothing
from node_worker.ledger import Ledger, OpenJob, Verdict
from node_worker.reporter import JobListener, Reporter, last_event
from schemas import reasons
from schemas.failures import Failure
from schemas.messages import EventKind, Job, JobEvent

log = logging.getLogger(__name__)

LIMIT: Final = 4
LEDGER_TRIES: Final = 20

ActorOf = Callable[[Job, JobListener], Actor[Any]]
Ended = asyncio.Future[None]

CANCELLED = Failure(
    reason=reasons.CANCELLED, message="the action was cancelled; the container runs as before"
)
RESTARTED = Failure(
    reason=reasons.WORKER_RESTARTED,
    message="the worker was stopped in the middle of the job, and undid what was done",
    advice="Nothing is needed: it is tried again while its deadline allows.",
    retriable=True,
)
TOO_LATE = Failure(
    reason=reasons.DEADLINE_EXCEEDED,
    message="the job was not done before its deadline, and was undone",
    advice="Allow more time (--timeout).",
)
STALE = Failure(
    reason=reasons.STALE_JOB, message="a later attempt of this action was seen on this node"
)


class Jobs:
    """The jobs of this worker."""

    def __init__(
        self,
        actor_of: ActorOf,
        ledger: Ledger,
        reporter: Reporter,
        *,
        observer: Observer = observe_nothing,
        limit: int = LIMIT,
    ) -> None:
        self._actor_of = actor_of
        self._ledger = ledger
        self._reporter = reporter
        self._observer = observer
        self._turns = asyncio.Semaphore(limit)
        self._claims = Claims()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, Stop] = {}
        self._actions: dict[str, str] = {}

    @property
    def running(self) -> tuple[str, ...]:
        """Actions at work."""
        return tuple(self._actions.values())

    def submit(self, batch: Sequence[tuple[Job, str]]) -> list[Ended]:
        """Take in jobs, each with its trace parent.

        Each future is done when the server has the job's last event: only then acknowledge it.
        """
        verdicts = self._ledger.accept(batch, time.time(), taken_up=True)
        return [
            self._begin(job, parent, verdict)
            for (job, parent), verdict in zip(batch, verdicts, strict=True)
        ]

    def cancel(self, action: str) -> None:
        """Call the action's job off, if it is at work and not committed yet."""
        self._call_off(CANCELLED, [job for job, of in self._actions.items() if of == action])

    async def take_up_open(self) -> None:
        """Undo or finish what an earlier process, or an undo that failed, has left open."""
        left = [one for one in self._ledger.unsettled() if one.job.id not in self._tasks]
        started = [self._start_again(one) for one in left]
        if running := {task for task in started if task is not None}:
            await asyncio.wait(running)

    async def close(self) -> None:
        """Call everything off and wait until it is undone or finished."""
        while self._tasks:
            self._call_off(RESTARTED, list(self._stops))
            await asyncio.wait(set(self._tasks.values()))

    # one job

    def _begin(self, job: Job, traceparent: str, verdict: Verdict) -> Ended:
        if verdict is Verdict.STALE:
            return self._refuse_stale(job)
        if verdict is Verdict.KNOWN:
            if job.id not in self._tasks:
                self._ledger.repeat(job.id)
            return self._reporter.ended(job.id)
        if failure := self._claims.take(job.id, job.order):
            event = last_event(job, EventKind.FAILED, failure=failure)
            self._ledger.end(job.id, event, settled=True)
        else:
            self._start(job, traceparent, fresh=True)
        return self._reporter.ended(job.id)

    def _refuse_stale(self, job: Job) -> Ended:
        log.warning("job %s is stale: a later attempt was seen", job.id)
        done: Ended = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def _start(self, job: Job, traceparent: str, *, fresh: bool) -> asyncio.Task[None]:
        stop = Stop()
        work = self._guarded(job, traceparent, stop, fresh=fresh)
        task = asyncio.create_task(work, name=f"job {job.id}")
        self._tasks[job.id], self._stops[job.id] = task, stop
        self._actions[job.id] = job.action
        task.add_done_callback(lambda _: self._forget(job.id))
        return task

    def _forget(self, job: str) -> None:
        self._claims.give_back(job)
        for known in (self._tasks, self._stops, self._actions):
            known.pop(job)

    async def _guarded(self, job: Job, traceparent: str, stop: Stop, *, fresh: bool) -> None:
        """The job's task; what goes wrong beside its steps leaves it open in the ledger."""
        too_late = asyncio.get_running_loop().call_later(
            max(job.deadline - time.time(), 0), stop.call, TOO_LATE
        )
        if job.deadline <= time.time():
            stop.call(TOO_LATE)
        attributes: dict[str, str | int] = {
            telemetry.ATTRIBUTE_ACTION: job.action,
            telemetry.ATTRIBUTE_ATTEMPT: job.attempt,
            telemetry.ATTRIBUTE_NODE: job.node,
        }
        try:
            with (
                telemetry.continuing(traceparent),
                telemetry.span(telemetry.SPAN_JOB, attributes),
            ):
                await tasks.finish(self._walk(job, stop, fresh=fresh))
        except Exception:
            log.exception("job %s stays open; it is taken up again later", job.id)
        finally:
            too_late.cancel()

    async def _walk(self, job: Job, stop: Stop, *, fresh: bool) -> None:
        run = 1 if fresh else self._ledger.take_up(job.id)
        listener = self._reporter.listener(job, run)
        listener.accepted()
        actor = self._actor_of(job, listener)
        executor = Executor(
            job.id,
            actor,
            self._ledger,
            listener,
            stop=stop,
            observer=self._observer,
            fresh=fresh,
        )
        async with self._turn(stop):
            outcome = await executor.run()
        await self._end(job, outcome)

    @asynccontextmanager
    async def _turn(self, stop: Stop) -> AsyncIterator[None]:
        """One of the jobs at work; a job that is called off needs no turn to end."""
        if not self._turns.locked():  # the ordinary case, without two more tasks
            async with self._turns:
                yield
            return
        got = asyncio.ensure_future(self._turns.acquire())
        called_off = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({got, called_off}, return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            await tasks.end(called_off)
            await tasks.end(got)
            if not got.cancelled():
                self._turns.release()

    async def _end(self, job: Job, outcome: Outcome[Any]) -> None:
        event = _event_of(job, outcome)
        _log_end(job, event)
        for tried in range(1, LEDGER_TRIES + 1):
            try:
                self._ledger.end(job.id, event, settled=outcome.settled)
                break
            except sqlite3.Error:
                if tried == LEDGER_TRIES:
                    raise
                log.exception("cannot write down the end of job %s", job.id)
            await asyncio.sleep(tasks.backoff(tried))
        self._reporter.wake()

    def _start_again(self, left: OpenJob) -> asyncio.Task[None] | None:
        """Go on with a job; one that has begun and is not committed goes back."""
        job = left.job
        if failure := self._claims.take(job.id, job.order):
            log.warning("job %s has to wait: %s", job.id, failure.message)
            return None
        if left.told_end or self._ledger.history(job.id).phases:
            log.info("taking up job %s again", job.id)
            self._ledger.turn_back(job.id, RESTARTED)
        return self._start(job, left.traceparent, fresh=False)

    def _call_off(self, failure: Failure, jobs: Sequence[str]) -> None:
        for job in jobs:
            self._stops[job].call(failure)


def _event_of(job: Job, outcome: Outcome[Any]) -> JobEvent:
    if outcome.result is not None:
        note = "" if outcome.failure is None else outcome.failure.message
        return last_event(job, EventKind.COMPLETED, result=outcome.result, note=note)
    cancelled = outcome.failure is not None and outcome.failure.reason == reasons.CANCELLED
    kind = EventKind.CANCELLED if cancelled else EventKind.FAILED
    return last_event(job, kind, failure=outcome.failure)


def _log_end(job: Job, event: JobEvent) -> None:
    if event.failure is None:
        log.info("job %s: %s %s", job.id, event.kind, event.note)
        return
    telemetry.mark_failed(event.failure.message)
    log.warning(
        "job %s: %s at step %s: %s: %s",
        job.id,
        event.kind,
        event.failure.step or "none",
        event.failure.reason,
        event.failure.message,
    )
