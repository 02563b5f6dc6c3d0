"""Walks one job's plan: asks `next_move`, writes down, acts, writes down.

Up to the commit a job can be called off (cancelled, out of time, the worker stops): the step at
work is cancelled if it is a long one, then everything is undone. Short steps, the commit step
itself, undoing, and everything behind the commit are never interrupted. An undo, a question or a
step behind the commit that fails is tried again, with growing pauses; when it fails for good, the
job stays open in the ledger and is taken up again later.

An observer is told of every point between an act and its record: there the crash tests kill.
"""

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from kybernate import telemetry
from kybernate.problems import trace_of
from node_worker.faults import failure_of
from node_worker.ledger import Ledger
from node_worker.plan import Ask, Do, Finish, History, Phase, Plan, Undo, committed, next_move
from schemas import reasons
from schemas.base import Record, decode, encode
from schemas.failures import Failure
from schemas.messages import Result

log = logging.getLogger(__name__)

N = TypeVar("N", bound=msgspec.Struct)

TRIES: Final = 12
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 10.0


class Point(StrEnum):
    """Where a worker can be killed: around an act and around its record."""

    BEFORE_DO = "before do"
    DONE = "done, not recorded"
    DONE_RECORDED = "done and recorded"
    BEFORE_UNDO = "before undo"
    UNDONE = "undone, not recorded"
    UNDONE_RECORDED = "undone and recorded"


class Actor(Protocol[N]):
    """What the steps of a plan mean. `notes` is what the steps so far have found out.

    `undo` copes with a step that had no effect, part of it, or was undone already. `landed`
    says whether the commit step took effect. A step behind the commit copes with being repeated.
    `result` is what to tell of a committed job: what the world says, for the worker may have died
    before the commit step told anything.
    """

    plan: Plan
    notes: type[N]
    interruptible: frozenset[str]
    """Steps that can be called off in the middle. The others are short, and what they ask of
    containerd must have happened, or not, before it is undone."""

    async def do(self, step: str, notes: N) -> N: ...

    async def undo(self, step: str, notes: N) -> None: ...

    async def landed(self, notes: N, /) -> bool: ...

    async def result(self, notes: N, /) -> Result: ...


class Listener(Protocol):
    """Who is told how the job gets on."""

    def started(self, step: str) -> None: ...

    def done(self, step: str, seconds: float) -> None: ...

    def undone(self, step: str, seconds: float) -> None: ...


class Outcome(Record, Generic[N], frozen=True, kw_only=True):
    notes: N
    failure: Failure | None = None
    """Why it was turned back, or could not be finished or undone."""
    result: Result | None = None
    """What a committed job has brought about."""
    settled: bool = True
    """Nothing is left to do or to undo."""


class Stop:
    """Word to a job, from anywhere, that it should not go on, and why."""

    def __init__(self) -> None:
        self._called = asyncio.Event()
        self._interruptible: asyncio.Task[Any] | None = None
        self.failure: Failure | None = None

    def call(self, failure: Failure) -> None:
        """The first reason stands."""
        if self.failure is None:
            self.failure = failure
            self._called.set()
            if self._interruptible is not None:
                self._interruptible.cancel()

    async def wait(self) -> None:
        await self._called.wait()

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """A call cancels what this task does in the block, which is told by CalledOff.

        Nobody else cancels a task that walks a plan.
        """
        task = self._interruptible = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError as error:
            if self.failure is None:
                raise
            raise CalledOff from error
        finally:
            self._interruptible = None
            if self.failure is not None and task is not None:
                task.uncancel()


class CalledOff(Exception):
    """The step was cancelled because the job was stopped."""


class _GaveUp(Exception):
    """Something that must succeed did not, however often it was tried."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def observe_nothing(step: str, point: Point) -> None:
    """Production's observer."""


Observer = Callable[[str, Point], None]
Pause = Callable[[float], Awaitable[None]]


class Executor(Generic[N]):
    """One walk over one job's plan, to its end or until nothing more can be done for now."""

    def __init__(
        self,
        job: str,
        actor: Actor[N],
        ledger: Ledger,
        listener: Listener,
        *,
        stop: Stop,
        observer: Observer = observe_nothing,
        pause: Pause = asyncio.sleep,
        fresh: bool = False,
    ) -> None:
        """`fresh`: no process has worked on it yet, so there is nothing to read."""
        self._job = job
        self._actor = actor
        self._ledger = ledger
        self._listener = listener
        self._stop = stop
        self._observer = observer
        self._pause = pause
        raw = None if fresh else ledger.notes(job)
        self._notes = actor.notes() if raw is None else decode(raw, actor.notes)
        self._written = self._notes
        self._history = History() if fresh else ledger.history(job)
        self._failure = None if fresh else ledger.failure(job)
        self._result: Result | None = None

    async def run(self) -> Outcome[N]:
        try:
            if await self._walk():
                await self._persist("result", self._learn_result)
        except _GaveUp as error:
            return await self._unsettled(error.failure)
        failure = None if self._result else self._failure
        return Outcome(notes=self._notes, failure=failure, result=self._result)

    async def _walk(self) -> bool:
        """To the end of the plan; whether it is committed."""
        while True:
            match next_move(self._actor.plan, self._history):
                case Do(step=step):
                    await self._do(step)
                case Undo(step=step):
                    await self._undo(step)
                case Ask(step=step):
                    await self._ask(step)
                case Finish(committed=done):
                    return done

    async def _learn_result(self) -> None:
        self._result = await self._actor.result(self._notes)

    async def _unsettled(self, failure: Failure) -> Outcome[N]:
        if committed(self._actor.plan, self._history) and self._result is None:
            try:
                await self._learn_result()
            except Exception:
                log.exception("job %s is committed, and its result cannot be read", self._job)
        return Outcome(notes=self._notes, failure=failure, result=self._result, settled=False)

    async def _do(self, step: str) -> None:
        if committed(self._actor.plan, self._history):
            await self._persist(step, lambda: self._act(step))
            return
        if self._stop.failure is not None:
            self._turn_back(self._stop.failure)
            return
        try:
            with self._interrupting(step):
                await self._act(step)
        except Exception as error:
            log.info(
                "step %s of job %s failed: %s", step, self._job, error, exc_info=trace_of(error)
            )
            self._record(step, Phase.FAILED)
            self._turn_back(self._why(step, error))

    def _interrupting(self, step: str) -> AbstractContextManager[None]:
        return self._stop.interrupting() if step in self._actor.interruptible else nullcontext()

    async def _act(self, step: str) -> None:
        self._listener.started(step)
        self._write(step, Phase.DOING)
        began = time.monotonic()
        self._observer(step, Point.BEFORE_DO)
        with telemetry.span(telemetry.step_span(step)):
            self._notes = await self._actor.do(step, self._notes)
        self._observer(step, Point.DONE)
        self._write(step, Phase.DONE)
        self._observer(step, Point.DONE_RECORDED)
        self._listener.done(step, time.monotonic() - began)

    async def _undo(self, step: str) -> None:
        began = time.monotonic()
        self._record(step, Phase.UNDOING)
        self._observer(step, Point.BEFORE_UNDO)
        with telemetry.span(telemetry.SPAN_UNDO, {telemetry.ATTRIBUTE_STEP: step}):
            await self._persist(step, lambda: self._actor.undo(step, self._notes))
        self._observer(step, Point.UNDONE)
        self._record(step, Phase.UNDONE)
        self._observer(step, Point.UNDONE_RECORDED)
        self._listener.undone(step, time.monotonic() - began)

    async def _ask(self, step: str) -> None:
        landed = False

        async def look() -> None:
            nonlocal landed
            landed = await self._actor.landed(self._notes)

        await self._persist(step, look)
        self._record(step, Phase.DONE if landed else Phase.MISSED)

    async def _persist(self, step: str, act: Callable[[], Awaitable[None]]) -> None:
        """Until it succeeds, or for good and all does not."""
        for tried in range(1, TRIES + 1):
            try:
                await act()
            except Exception as error:
                trace = trace_of(error)
                log.warning(
                    "%s of job %s: try %d: %s", step, self._job, tried, error, exc_info=trace
                )
                if tried == TRIES:
                    raise _GaveUp(self._given_up(step, error)) from error
            else:
                return
            longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 3.0 ** (tried - 1))
            await self._pause(random.uniform(longest / 2, longest))  # noqa: S311 - no secret

    def _given_up(self, step: str, error: Exception) -> Failure:
        why = failure_at(step, error)
        first = self._failure
        after = f" after {first.reason}: {first.message}" if first else ""
        return Failure(
            reason=reasons.UNDO_FAILED,
            message=f"step {step} could not be brought to its end ({why.message}){after}",
            advice=f"{why.advice} The worker keeps trying.".strip(),
            step=step,
        )

    def _why(self, step: str, error: Exception) -> Failure:
        if isinstance(error, CalledOff) and self._stop.failure is not None:
            return msgspec.structs.replace(self._stop.failure, step=step)
        return failure_at(step, error)

    def _write(self, step: str, phase: Phase) -> None:
        """Write down, or raise: without the record nothing may be done."""
        self._remember(step, phase)
        news = self._notes is not self._written
        self._ledger.step(self._job, step, phase, encode(self._notes) if news else None)
        self._written = self._notes

    def _record(self, step: str, phase: Phase) -> None:
        """Write down if that is possible: the way back must not need room on the disk.

        A record that is missing here costs another run nothing but doing or undoing it again.
        """
        self._remember(step, phase)
        try:
            self._ledger.step(self._job, step, phase)
        except sqlite3.Error:
            log.exception("cannot write down that %s of job %s is %s", step, self._job, phase)

    def _remember(self, step: str, phase: Phase) -> None:
        self._history = msgspec.structs.replace(
            self._history, phases={**self._history.phases, step: phase}
        )

    def _turn_back(self, failure: Failure) -> None:
        self._failure = self._failure or failure
        self._history = msgspec.structs.replace(self._history, turned_back=True)
        try:
            self._ledger.turn_back(self._job, failure)
        except sqlite3.Error:
            log.exception("cannot write down that job %s is turned back", self._job)


def failure_at(step: str, error: Exception) -> Failure:
    return msgspec.structs.replace(failure_of(error), step=step)
