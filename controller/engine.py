"""Applies the state machine to the records and carries out what it commands.

Decide, write what is true of checkpoints, compare-and-set the record, then act. A lost race means:
read again, decide again. Inputs for one action are applied one after the other in this process, so
races are between controllers only. What could not be carried out is due again, and the sweep of
any controller does it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from weakref import WeakValueDictionary

import msgspec
from opentelemetry.trace import SpanKind

from controller.catalogue import Catalogue
from controller.decisions import (
    CancelAsked,
    Command,
    Input,
    MarkDeleted,
    Published,
    PublishJob,
    RecordCheckpoint,
    TellCancel,
    TimePassed,
)
from controller.machine import STANDARD_RULES, Rules, advance, next_due, truths_of
from controller.records import Records
from controller.topology import repaired
from kybernate import telemetry
from kybernate.bus.port import Bus, Conflict, Row
from kybernate.problems import trace_of
from kybernate.tasks import backoff
from schemas.actions import Action, ActionState
from schemas.messages import TERMINAL_EVENTS, Cancel, Job, JobEvent
from schemas.names import cancel_subject, job_subject
from schemas.orders import verb

WRITE_TRIES: Final = 20
PUBLISHING_AT_ONCE: Final = 64

log = logging.getLogger(__name__)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    action: Action
    commands: tuple[Command, ...]


class Engine:
    def __init__(
        self,
        bus: Bus,
        records: Records,
        catalogue: Catalogue,
        *,
        rules: Rules = STANDARD_RULES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._records = records
        self._catalogue = catalogue
        self._rules = rules
        self._clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._publishing: set[str] = set()
        self._to_note: dict[str, tuple[Job, float]] = {}
        self._slots = asyncio.Semaphore(PUBLISHING_AT_ONCE)

    async def start(self, action: Action) -> Action:
        """Record a new action, and get its job on the way. Conflict when its id is taken."""
        recorded = await self._records.create(action)
        await _guarded(f"dispatch of {recorded.id}", self.pass_time, recorded.id)
        return recorded

    async def cancel(self, action: str) -> Action | None:
        """NotAllowed for one that ended; None for one that nobody knows."""
        return await self._apply_and_act(action, [CancelAsked()])

    async def pass_time(self, action: str) -> Action | None:
        """Do what is due for the action."""
        return await self._apply_and_act(action, [TimePassed()])

    async def fold(self, action: str, events: Sequence[JobEvent]) -> Action | None:
        """Take in what a node reports; None for an action that nobody knows."""
        ending = next((event for event in events if event.kind in TERMINAL_EVENTS), None)
        row = await self._records.at_hand(action) if ending else None
        if ending is None or row is None:
            return await self._apply_and_act(action, events)
        attributes = {**_attributes(row.value), "kybernate.event": ending.kind.value}
        with (
            telemetry.continuing(row.value.traceparent),
            telemetry.span(telemetry.SPAN_EVENT, attributes),
        ):
            return await self._apply_and_act(action, events)

    async def take_truths(self, events: Sequence[JobEvent]) -> None:
        """What events say about checkpoints though their action is lost."""
        for event in events:
            for truth in truths_of(event):
                await self._write_truth(truth)

    async def do_what_is_due(self) -> None:
        now = self._clock()
        await self._note_published(now)
        due = [one.id for one in self._records.unfinished() if self._is_due(one, now)]
        await asyncio.gather(
            *(_guarded(f"what is due for {action}", self.pass_time, action) for action in due)
        )

    def _is_due(self, action: Action, now: float) -> bool:
        due = next_due(action, self._rules)
        return due is not None and due <= now

    async def _apply_and_act(self, action: str, inputs: Sequence[Input]) -> Action | None:
        lock = self._locks.setdefault(action, asyncio.Lock())
        async with lock:
            outcome = await self._apply(action, inputs)
        if outcome is None:
            return None
        for command in outcome.commands:
            await self._act(outcome.action, command)
        return outcome.action

    async def _apply(self, action: str, inputs: Sequence[Input]) -> Outcome | None:
        row = await self._records.at_hand(action)
        for tries in range(1, WRITE_TRIES + 1):
            if row is None:
                return None
            try:
                return await self._decide_and_write(row, inputs)
            except Conflict:
                if tries > 1:
                    await asyncio.sleep(backoff(tries - 1, first=0.002, longest=0.2))
                row = await self._records.read(action)
        raise Conflict(f"action {action} was written by others {WRITE_TRIES} times in a row")

    async def _decide_and_write(self, row: Row[Action], inputs: Sequence[Input]) -> Outcome:
        action, commands = row.value, list[Command]()
        for given in inputs:
            if isinstance(given, TimePassed) and action.ended:
                continue
            decision = advance(action, given, self._clock(), self._rules)
            action = decision.action
            commands += decision.commands
        for command in commands:
            await self._write_truth(command)
        written = await self._records.write(row, action)
        if action.ended and not row.value.ended:
            _tell_end(action)
        return Outcome(action=written.value, commands=tuple(commands))

    async def _write_truth(self, command: Command) -> None:
        match command:
            case RecordCheckpoint(facts=facts):
                await self._catalogue.record(facts)
            case MarkDeleted(checkpoint=checkpoint):
                await self._catalogue.mark_deleted(checkpoint)

    async def _act(self, action: Action, command: Command) -> None:
        match command:
            case PublishJob(job=job):
                await self._publish(action, job)
            case TellCancel(node=node, action=cancelled):
                await self._bus.tell(cancel_subject(node), Cancel(action=cancelled))

    async def _publish(self, action: Action, job: Job) -> None:
        if job.id in self._publishing or job.id in self._to_note:
            return
        self._publishing.add(job.id)
        try:
            async with self._slots:
                began = self._clock()
                await self._publish_in_trace(action, job)
            self._to_note[job.id] = (job, began)
        finally:
            self._publishing.discard(job.id)

    async def _publish_in_trace(self, action: Action, job: Job) -> None:
        subject = job_subject(job.node, verb(job.order))
        with (
            telemetry.continuing(action.traceparent),
            telemetry.span(telemetry.SPAN_DISPATCH, _attributes(action), kind=SpanKind.PRODUCER),
        ):
            await repaired(self._bus, lambda: self._bus.publish(subject, job, dedupe=job.id))

    async def _note_published(self, now: float) -> None:
        ripe = [
            (job, began)
            for job, began in self._to_note.values()
            if began + self._rules.note_seconds <= now
        ]
        for job, _ in ripe:
            del self._to_note[job.id]
        await asyncio.gather(
            *(_guarded(f"note of job {job.id}", self._note, job, began) for job, began in ripe)
        )

    async def _note(self, job: Job, began: float) -> None:
        row = await self._records.at_hand(job.action)
        if row is not None and not _heard_of(row.value, began):
            note = Published(attempt=job.attempt, at=began)
            await self._apply_and_act(job.action, [note])


def _heard_of(action: Action, since: float) -> bool:
    """Its node has answered, so a note would say nothing more."""
    started = action.state is not ActionState.PENDING
    return action.ended or (started and action.updated >= since)


async def _guarded(what: str, act: Callable[..., Awaitable[object]], *given: object) -> None:
    try:
        await act(*given)
    except Exception as error:  # noqa: BLE001 - logged; the sweep does what is left undone
        _log_undone(what, error)


def _log_undone(what: str, error: BaseException) -> None:
    log.warning("%s: %s; it is due again", what, error, exc_info=trace_of(error))


def _attributes(action: Action) -> dict[str, str | int]:
    return {
        telemetry.ATTRIBUTE_ACTION: action.id,
        telemetry.ATTRIBUTE_ATTEMPT: action.attempt,
        telemetry.ATTRIBUTE_NODE: action.node,
    }


def _tell_end(action: Action) -> None:
    if action.failure is None:
        log.debug("action %s (%s) %s", action.id, action.kind, action.state)
        return
    with telemetry.continuing(action.traceparent):
        log.info(
            "action %s (%s on %s) %s: %s",
            action.id,
            action.kind,
            action.node,
            action.state,
            action.failure.message,
        )
