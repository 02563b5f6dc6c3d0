"""The life of an action, as a pure function: `(action, input, now) → (action, commands)`.

    PENDING ──▶ DISPATCHED ──▶ RUNNING ──▶ COMPLETED | FAILED | CANCELLED
       ▲                          │
       └────── another attempt ───┘

Any number of controllers decide side by side, each on the record it read, and whoever writes
first wins; the others read again and decide again. So every rule must bear being applied late,
twice, and to reports in any order:

1.  A job is published first and noted afterwards, so a report may find its action still PENDING,
    and the note may find it further on or ended.
2.  A report of an earlier attempt changes nothing. Neither does one about an ended action, except
    that a late report of a step completes the list of steps. A report of a later attempt than the
    record's shows that the record was lost and restored: the record catches up.
3.  What a node calls done is true whatever became of the action: a durable checkpoint goes into
    the catalogue, and a deleted one is marked there, from any attempt at any time. A node may say
    so before its job has ended; the record shows it from then on.
4.  Within an attempt, reports of steps may come in any order and twice. Progress older than the
    newest report is dropped. The one report that ends an attempt always counts.
5.  A failure that another attempt may cure leads to one: while attempts are left, before the
    deadline, and unless somebody asked to cancel. The pause before it grows and is jittered by
    the action's own id, which keeps this function pure.
6.  To cancel is a wish. An action that waits for another attempt ends at once; any other one may
    be with its node already, even if PENDING, so it ends when the node says so. The wish is
    repeated to the node until then. What completed in the meantime is completed.
7.  A PENDING action fails at its deadline. Later on only the node knows what it did: it commits
    nothing after the deadline and says so, and gets `answer_seconds` more for saying it. After
    that it counts as silent.
8.  A job whose node has been quiet for a while is published again: the stream may have been
    wiped, or the answer may have been lost. A node that knows the job repeats its answer.
9.  An ended action stays as it ended. To cancel it or to let time pass for it is an error.
"""

import zlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from controller.decisions import (
    CancelAsked,
    Command,
    Decision,
    Input,
    MarkDeleted,
    Published,
    PublishJob,
    RecordCheckpoint,
    TellCancel,
    TimePassed,
)
from controller.steps import steps_with
from schemas import reasons
from schemas.actions import TERMINAL_STATES, Action, ActionState
from schemas.failures import Failure
from schemas.messages import Checkpointed, Deleted, EventKind, Job, JobEvent, Restored
from schemas.orders import Place, RestoreOrder


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers in the rules."""

    attempts: int = 3
    first_pause_seconds: float = 1.0
    """Before the second attempt; doubled before each further one, and jittered by half."""
    note_seconds: float = 2.0
    """When a published job is noted, unless its node has answered by then, which says more."""
    adopt_seconds: float = 5.0
    """How long others leave a PENDING action to the controller that recorded it."""
    quiet_seconds: float = 15.0
    """Without a report for so long, the job is published again."""
    longest_quiet_seconds: float = 120.0
    """The quiet grows with the action's age up to this, so that a long queue is not flooded."""
    answer_seconds: float = 30.0
    """What a node gets after the deadline to say how the job ended."""


class NotAllowed(ValueError):
    """The transition table has no line for this state and input."""

    def __init__(self, state: ActionState, trigger: "Trigger") -> None:
        super().__init__(f"an action that is {state.value} takes no {trigger.value}")
        self.state = state
        self.trigger = trigger


class Trigger(StrEnum):
    """The kinds of input that the table tells apart."""

    PUBLISHED = "published"
    REPORT = "report"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CANCEL = "cancel"
    TIME = "time"


Rule = Callable[[Action, Any, float, Rules], Decision]

STANDARD_RULES: Final = Rules()

_TRIGGER_OF_INPUT: Final[Mapping[type, Trigger]] = {
    Published: Trigger.PUBLISHED,
    CancelAsked: Trigger.CANCEL,
    TimePassed: Trigger.TIME,
}
_TRIGGER_OF_EVENT: Final[Mapping[EventKind, Trigger]] = {
    EventKind.COMPLETED: Trigger.COMPLETED,
    EventKind.FAILED: Trigger.FAILED,
    EventKind.CANCELLED: Trigger.CANCELLED,
}


def advance(action: Action, given: Input, now: float, rules: Rules = STANDARD_RULES) -> Decision:
    """Decide; `NotAllowed` when the table has no line for it. An equal action needs no write."""
    trigger = trigger_of(given)
    rule = TRANSITIONS.get((action.state, trigger))
    if rule is None:
        raise NotAllowed(action.state, trigger)
    if isinstance(given, JobEvent) and given.attempt != action.attempt:
        if given.attempt < action.attempt or action.ended:
            return _only_truths(action, given, now, rules)
        action = _with_attempt(action, given.attempt)
    return rule(action, given, now, rules)


def trigger_of(given: Input) -> Trigger:
    if isinstance(given, JobEvent):
        return _TRIGGER_OF_EVENT.get(given.kind, Trigger.REPORT)
    return _TRIGGER_OF_INPUT[type(given)]


def next_due(action: Action, rules: Rules = STANDARD_RULES) -> float | None:
    """When time has something to do for the action; None for one that ended."""
    if action.ended:
        return None
    if action.state is ActionState.PENDING:
        return min(max(action.not_before, action.created + rules.adopt_seconds), action.deadline)
    if action.cancel_requested:
        return action.updated
    return min(_quiet_until(action, rules), action.deadline + rules.answer_seconds)


def job_of(action: Action) -> Job:
    return Job(
        action=action.id,
        attempt=action.attempt,
        node=action.node,
        order=action.order,
        deadline=action.deadline,
    )


def truths_of(event: JobEvent, action: Action | None = None) -> tuple[Command, ...]:
    """What a job's result says about checkpoints, true whatever became of its action."""
    if event.kind in {EventKind.FAILED, EventKind.CANCELLED}:
        return ()
    match event.result:
        case Checkpointed(checkpoint=facts):
            return (RecordCheckpoint(facts=facts),)
        case Deleted(checkpoint=checkpoint):
            return (MarkDeleted(checkpoint=checkpoint),)
        case Restored(checkpoint=checkpoint) if action is not None and _woken(action):
            return (MarkDeleted(checkpoint=checkpoint),)
    return ()


def _woken(action: Action) -> bool:
    """A checkpoint in memory is used up when its container runs again."""
    return isinstance(action.order, RestoreOrder) and action.order.place is Place.MEMORY


def _note_published(action: Action, given: Published, now: float, _rules: Rules) -> Decision:
    """Worth no write when the node was heard of since."""
    if given.attempt != action.attempt:
        return Decision(action=action)
    if action.state is ActionState.PENDING:
        return Decision(
            action=_changed(action, now, state=ActionState.DISPATCHED, dispatched=given.at)
        )
    if max(action.updated, action.dispatched or 0.0) >= given.at:
        return Decision(action=action)
    return Decision(action=_changed(action, now, dispatched=given.at))


def _stay(action: Action, _given: Input, _now: float, _rules: Rules) -> Decision:
    return Decision(action=action)


def _take_report(action: Action, event: JobEvent, now: float, _rules: Rules) -> Decision:
    newer = event.sequence > action.sequence
    steps = steps_with(action.steps, event, newer=newer)
    result = event.result or action.result
    running = action.state is ActionState.RUNNING
    if running and not newer and (steps, result) == (action.steps, action.result):
        return Decision(action=action)
    after = _changed(
        action,
        now,
        state=ActionState.RUNNING,
        dispatched=action.dispatched or now,
        sequence=max(event.sequence, action.sequence),
        steps=steps,
        result=result,
    )
    wish = (_wish(action),) if action.cancel_requested and not running else ()
    return Decision(action=after, commands=(*truths_of(event, action), *wish))


def _take_late_report(action: Action, event: JobEvent, _now: float, _rules: Rules) -> Decision:
    steps = steps_with(action.steps, event, newer=False)
    late = msgspec.structs.replace(action, steps=steps)
    return Decision(action=late, commands=truths_of(event, action))


def _complete(action: Action, event: JobEvent, now: float, _rules: Rules) -> Decision:
    after = _ended(action, event, now, state=ActionState.COMPLETED, result=event.result)
    return Decision(action=after, commands=truths_of(event, action))


def _only_truths(action: Action, event: JobEvent, _now: float, _rules: Rules) -> Decision:
    return Decision(action=action, commands=truths_of(event, action))


def _fail(action: Action, event: JobEvent, now: float, rules: Rules) -> Decision:
    failure = event.failure or _unexplained(event)
    if failure.retriable and action.cancel_requested:
        return _end_cancelled(action, event, now, rules)
    again = _another_attempt(action, failure, now, rules) if failure.retriable else None
    failed = again or _ended(action, event, now, state=ActionState.FAILED, failure=failure)
    return Decision(action=failed)


def _another_attempt(action: Action, failure: Failure, now: float, rules: Rules) -> Action | None:
    not_before = now + _pause(action, rules)
    if action.attempt >= rules.attempts or not_before >= action.deadline:
        return None
    again = _with_attempt(action, action.attempt + 1)
    failures = (*action.earlier_failures, failure)
    return _changed(
        again,
        now,
        state=ActionState.PENDING,
        not_before=not_before,
        dispatched=None,
        earlier_failures=failures,
    )


def _end_cancelled(action: Action, event: JobEvent, now: float, _rules: Rules) -> Decision:
    failure = event.failure
    if failure is None or failure.reason != reasons.CANCELLED:
        failure = _cancelled(event.step)
    return Decision(action=_ended(action, event, now, state=ActionState.CANCELLED, failure=failure))


def _cancel_pending(action: Action, given: CancelAsked, now: float, rules: Rules) -> Decision:
    if now >= action.not_before:
        return _wish_to_cancel(action, given, now, rules)
    after = _changed(
        action, now, state=ActionState.CANCELLED, cancel_requested=True, failure=_cancelled("")
    )
    return Decision(action=after)


def _wish_to_cancel(action: Action, _given: Input, now: float, _rules: Rules) -> Decision:
    after = action if action.cancel_requested else _changed(action, now, cancel_requested=True)
    return Decision(action=after, commands=(_wish(action),))


def _pass_time_pending(action: Action, _given: Input, now: float, _rules: Rules) -> Decision:
    if now >= action.deadline:
        failure = _too_late(action)
        return Decision(action=_changed(action, now, state=ActionState.FAILED, failure=failure))
    if now < action.not_before:
        return Decision(action=action)
    wish = (_wish(action),) if action.cancel_requested else ()
    return Decision(action=action, commands=(PublishJob(job=job_of(action)), *wish))


def _pass_time_published(action: Action, _given: Input, now: float, rules: Rules) -> Decision:
    if now >= action.deadline + rules.answer_seconds:
        failure = _silent(action, rules)
        return Decision(action=_changed(action, now, state=ActionState.FAILED, failure=failure))
    wish = (_wish(action),) if action.cancel_requested else ()
    job = (PublishJob(job=job_of(action)),) if now >= _quiet_until(action, rules) else ()
    return Decision(action=action, commands=(*job, *wish))


def _with_attempt(action: Action, attempt: int) -> Action:
    return msgspec.structs.replace(action, attempt=attempt, sequence=-1, steps=())


def _ended(
    action: Action,
    event: JobEvent,
    now: float,
    *,
    state: ActionState,
    **changes: object,
) -> Action:
    sequence = max(event.sequence, action.sequence)
    return _changed(action, now, state=state, sequence=sequence, **changes)


def _changed(action: Action, now: float, **changes: object) -> Action:
    return msgspec.structs.replace(action, updated=max(now, action.updated), **changes)


def _quiet_until(action: Action, rules: Rules) -> float:
    last = max(action.updated, action.dispatched or 0.0)
    age = last - action.created
    return last + max(rules.quiet_seconds, min(age, rules.longest_quiet_seconds))


def _pause(action: Action, rules: Rules) -> float:
    doubled: float = rules.first_pause_seconds * 2 ** (action.attempt - 1)
    jitter = zlib.crc32(f"{action.id}.{action.attempt}".encode()) / 2**32
    return doubled * (1 + jitter / 2)


def _wish(action: Action) -> TellCancel:
    return TellCancel(node=action.node, action=action.id)


def _cancelled(step: str) -> Failure:
    return Failure(
        reason=reasons.CANCELLED,
        message="the action was cancelled on request; nothing was changed",
        step=step,
    )


def _unexplained(event: JobEvent) -> Failure:
    return Failure(
        reason=reasons.INTERNAL,
        message=f"node {event.node} reported a failure without saying why",
        advice="see the worker's log on that node",
        step=event.step,
    )


def _too_late(action: Action) -> Failure:
    allowed = action.deadline - action.created
    return Failure(
        reason=reasons.DEADLINE_EXCEEDED,
        message=f"the job could not be handed to node {action.node} within {allowed:.0f} s",
        advice="ask again, with a longer timeout when earlier attempts failed for lack of time",
    )


def _silent(action: Action, rules: Rules) -> Failure:
    grace = f"{rules.answer_seconds:.0f} s"
    return Failure(
        reason=reasons.NODE_SILENT,
        message=f"node {action.node} did not say how the job ended until {grace} after its "
        "deadline",
        advice="see whether its worker runs and reaches NATS; it undoes what it left half done "
        "when it starts, and a checkpoint that it did complete appears in the catalogue",
    )


_UNFINISHED_LINES: Final[Mapping[Trigger, Rule]] = {
    Trigger.PUBLISHED: _note_published,
    Trigger.REPORT: _take_report,
    Trigger.COMPLETED: _complete,
    Trigger.FAILED: _fail,
    Trigger.CANCELLED: _end_cancelled,
}
_ENDED_LINES: Final[Mapping[Trigger, Rule]] = {
    Trigger.PUBLISHED: _stay,
    Trigger.REPORT: _take_late_report,
    Trigger.COMPLETED: _only_truths,
    Trigger.FAILED: _stay,
    Trigger.CANCELLED: _stay,
}

TRANSITIONS: Final[Mapping[tuple[ActionState, Trigger], Rule]] = {
    # Not yet known to be published
    **{(ActionState.PENDING, trigger): rule for trigger, rule in _UNFINISHED_LINES.items()},
    (ActionState.PENDING, Trigger.CANCEL): _cancel_pending,
    (ActionState.PENDING, Trigger.TIME): _pass_time_pending,
    # In the stream
    **{(ActionState.DISPATCHED, trigger): rule for trigger, rule in _UNFINISHED_LINES.items()},
    (ActionState.DISPATCHED, Trigger.CANCEL): _wish_to_cancel,
    (ActionState.DISPATCHED, Trigger.TIME): _pass_time_published,
    # At work
    **{(ActionState.RUNNING, trigger): rule for trigger, rule in _UNFINISHED_LINES.items()},
    (ActionState.RUNNING, Trigger.CANCEL): _wish_to_cancel,
    (ActionState.RUNNING, Trigger.TIME): _pass_time_published,
    # Ended: CANCEL and TIME are errors
    **{
        (state, trigger): rule
        for state in TERMINAL_STATES
        for trigger, rule in _ENDED_LINES.items()
    },
}
