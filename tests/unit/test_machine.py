from typing import Any

import msgspec
import pytest

from controller.decisions import (
    CancelAsked,
    Input,
    MarkDeleted,
    Published,
    PublishJob,
    RecordCheckpoint,
    TellCancel,
    TimePassed,
)
from controller.machine import (
    TRANSITIONS,
    NotAllowed,
    Rules,
    Trigger,
    advance,
    job_of,
    next_due,
    truths_of,
)
from schemas import reasons
from schemas.actions import TERMINAL_STATES, Action, ActionState, StepProgress
from schemas.failures import Failure
from schemas.manifest import CheckpointFacts
from schemas.messages import Checkpointed, Deleted, EventKind, JobEvent, Restored
from schemas.orders import (
    CheckpointOrder,
    DeleteOrder,
    Order,
    Place,
    RestoreOrder,
    Target,
    only_part,
)
from tests.support.checkpoints import parts_of

ID = "11111111-2222-3333-4444-555555555555"
TARGET = Target(namespace="default", container="counter")
FACTS = CheckpointFacts(id=ID, node="n1", parts=parts_of(TARGET), created=5.0, size=1)
RESULT = Checkpointed(checkpoint=FACTS)
CREATED = 100.0
DEADLINE = 700.0
RULES = Rules()
S = ActionState
T = Trigger
UNFINISHED = (S.PENDING, S.DISPATCHED, S.RUNNING)


def action(state: ActionState = S.PENDING, **changes: object) -> Action:
    order: Order = CheckpointOrder(parts=only_part(TARGET), checkpoint=ID)
    plain = Action(
        id=ID,
        kind="checkpoint",
        node="n1",
        order=order,
        state=state,
        created=CREATED,
        updated=CREATED,
        deadline=DEADLINE,
        dispatched=None if state is S.PENDING else CREATED,
    )
    return msgspec.structs.replace(plain, **changes)


def event(kind: EventKind, *, attempt: int = 1, sequence: int = 0, **fields: Any) -> JobEvent:
    plain = JobEvent(
        action=ID, attempt=attempt, sequence=sequence, node="n1", kind=kind, at=CREATED + sequence
    )
    return msgspec.structs.replace(plain, **fields)


def completed(**fields: Any) -> JobEvent:
    return event(EventKind.COMPLETED, **{"result": Checkpointed(checkpoint=FACTS), **fields})


def failed(*, retriable: bool, **fields: Any) -> JobEvent:
    failure = Failure(reason=reasons.DUMP_FAILED, message="no", retriable=retriable)
    return event(EventKind.FAILED, failure=failure, **fields)


INPUTS: dict[Trigger, Input] = {
    T.PUBLISHED: Published(attempt=1, at=CREATED + 1),
    T.REPORT: event(EventKind.ACCEPTED),
    T.COMPLETED: completed(),
    T.FAILED: failed(retriable=False),
    T.CANCELLED: event(EventKind.CANCELLED),
    T.CANCEL: CancelAsked(),
    T.TIME: TimePassed(),
}

LEADS_TO: dict[tuple[ActionState, Trigger], ActionState] = {
    (S.PENDING, T.PUBLISHED): S.DISPATCHED,
    (S.PENDING, T.REPORT): S.RUNNING,
    (S.PENDING, T.COMPLETED): S.COMPLETED,
    (S.PENDING, T.FAILED): S.FAILED,
    (S.PENDING, T.CANCELLED): S.CANCELLED,
    (S.PENDING, T.CANCEL): S.PENDING,
    (S.PENDING, T.TIME): S.PENDING,
    (S.DISPATCHED, T.PUBLISHED): S.DISPATCHED,
    (S.DISPATCHED, T.REPORT): S.RUNNING,
    (S.DISPATCHED, T.COMPLETED): S.COMPLETED,
    (S.DISPATCHED, T.FAILED): S.FAILED,
    (S.DISPATCHED, T.CANCELLED): S.CANCELLED,
    (S.DISPATCHED, T.CANCEL): S.DISPATCHED,
    (S.DISPATCHED, T.TIME): S.DISPATCHED,
    (S.RUNNING, T.PUBLISHED): S.RUNNING,
    (S.RUNNING, T.REPORT): S.RUNNING,
    (S.RUNNING, T.COMPLETED): S.COMPLETED,
    (S.RUNNING, T.FAILED): S.FAILED,
    (S.RUNNING, T.CANCELLED): S.CANCELLED,
    (S.RUNNING, T.CANCEL): S.RUNNING,
    (S.RUNNING, T.TIME): S.RUNNING,
    **{
        (state, trigger): state
        for state in TERMINAL_STATES
        for trigger in (T.PUBLISHED, T.REPORT, T.COMPLETED, T.FAILED, T.CANCELLED)
    },
}


@pytest.mark.parametrize("trigger", Trigger)
@pytest.mark.parametrize("state", ActionState)
def test_every_state_and_input_leads_where_the_table_says(
    state: ActionState, trigger: Trigger
) -> None:
    before, given = action(state), INPUTS[trigger]
    if (state, trigger) not in LEADS_TO:
        with pytest.raises(NotAllowed, match=f"{state.value} takes no {trigger.value}"):
            advance(before, given, CREATED + 1)
        return
    assert advance(before, given, CREATED + 1).action.state is LEADS_TO[state, trigger]


def test_the_table_has_no_line_beyond_these() -> None:
    assert set(TRANSITIONS) == set(LEADS_TO)


@pytest.mark.parametrize("kind", EventKind)
def test_every_kind_of_event_is_taken_by_an_unfinished_action(kind: EventKind) -> None:
    assert advance(action(), event(kind), CREATED).action.state is not S.PENDING


def test_time_publishes_a_pending_job_and_publishing_is_noted() -> None:
    pending = action()
    decision = advance(pending, TimePassed(), CREATED)
    assert decision.action == pending
    assert decision.commands == (PublishJob(job=job_of(pending)),)
    noted = advance(pending, Published(attempt=1, at=CREATED + 1), CREATED + 2).action
    assert (noted.state, noted.dispatched) == (S.DISPATCHED, CREATED + 1)


def test_a_note_about_an_earlier_attempt_changes_nothing() -> None:
    second = action(attempt=2)
    assert advance(second, Published(attempt=1, at=CREATED), CREATED).action == second


def test_the_note_is_worth_no_write_once_the_node_was_heard_of() -> None:
    heard = advance(action(), event(EventKind.ACCEPTED), CREATED + 2).action
    assert advance(heard, Published(attempt=1, at=CREATED + 1), CREATED + 3).action == heard


def test_nothing_is_published_during_the_pause() -> None:
    pausing = action(attempt=2, not_before=CREATED + 5)
    assert advance(pausing, TimePassed(), CREATED + 4).commands == ()
    assert advance(pausing, TimePassed(), CREATED + 5).commands != ()


@pytest.mark.parametrize("state", ActionState)
def test_a_report_of_an_earlier_attempt_changes_nothing(state: ActionState) -> None:
    second = action(state, attempt=2)
    for kind in EventKind:
        assert advance(second, event(kind, attempt=1, sequence=9), CREATED).action == second


@pytest.mark.parametrize("state", ActionState)
@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_a_completed_checkpoint_is_recorded_whatever_became_of_its_action(
    state: ActionState, attempt: int
) -> None:
    second = action(state, attempt=2)
    decision = advance(second, completed(attempt=attempt), CREATED)
    assert decision.commands == (RecordCheckpoint(facts=FACTS),)


def test_a_report_of_a_later_attempt_brings_a_restored_record_up_to_date() -> None:
    step = StepProgress(step="dump", started=CREATED)
    old = action(S.RUNNING, sequence=7, steps=(step,))
    after = advance(old, event(EventKind.ACCEPTED, attempt=2), CREATED).action
    assert (after.attempt, after.sequence, after.steps) == (2, 0, ())


def test_a_deleted_checkpoint_is_marked() -> None:
    deleting = action(S.RUNNING, kind="delete", order=DeleteOrder(checkpoint=ID))
    decision = advance(deleting, completed(result=Deleted(checkpoint=ID)), CREATED)
    assert decision.commands == (MarkDeleted(checkpoint=ID),)


@pytest.mark.parametrize(("place", "used_up"), [(Place.MEMORY, True), (Place.DISK, False)])
def test_a_restore_uses_up_a_checkpoint_in_memory_only(place: Place, used_up: bool) -> None:  # noqa: FBT001
    order = RestoreOrder(checkpoint=ID, part=TARGET.container, target=TARGET, place=place)
    restoring = action(S.RUNNING, kind="restore", order=order)
    result = Restored(target=TARGET, pid=1, checkpoint=ID)
    decision = advance(restoring, completed(result=result), CREATED)
    assert decision.action.result == result
    assert decision.commands == ((MarkDeleted(checkpoint=ID),) if used_up else ())


def test_a_failed_event_says_nothing_about_checkpoints() -> None:
    assert truths_of(failed(retriable=False, result=Checkpointed(checkpoint=FACTS))) == ()


def test_steps_add_up_in_any_order_and_duplicates_change_nothing() -> None:
    told = [
        event(EventKind.STEP_STARTED, sequence=1, step="dump"),
        event(EventKind.STEP_DONE, sequence=3, step="dump", seconds=2.0, done_bytes=8),
        event(EventKind.STEP_STARTED, sequence=4, step="hash"),
        event(EventKind.STEP_DONE, sequence=5, step="hash", seconds=0.5),
    ]
    forwards = backwards = action(S.RUNNING)
    for one in [*told, *told]:
        forwards = advance(forwards, one, CREATED).action
    for one in [*reversed(told), *told]:
        backwards = advance(backwards, one, CREATED).action
    assert forwards == backwards
    assert [(step.step, step.seconds) for step in forwards.steps] == [("dump", 2.0), ("hash", 0.5)]


def test_old_progress_is_dropped_and_new_progress_shown() -> None:
    at_work = action(S.RUNNING)
    new = event(EventKind.PROGRESS, sequence=5, step="dump", done_bytes=50, total_bytes=90)
    old = event(EventKind.PROGRESS, sequence=4, step="dump", done_bytes=40, total_bytes=90)
    after = advance(at_work, new, CREATED).action
    assert after.steps[0].done_bytes == 50
    assert advance(after, old, CREATED).action == after


@pytest.mark.parametrize("state", sorted(TERMINAL_STATES))
def test_a_late_step_completes_the_list_of_an_ended_action_and_nothing_else(
    state: ActionState,
) -> None:
    ended = action(state, sequence=9)
    late = event(EventKind.STEP_DONE, sequence=3, step="dump", seconds=1.0)
    after = advance(ended, late, CREATED + 50).action
    assert [step.step for step in after.steps] == ["dump"]
    assert msgspec.structs.replace(after, steps=()) == ended


def test_the_report_that_ends_an_attempt_counts_even_when_numbered_low() -> None:
    at_work = action(S.RUNNING, sequence=9)
    assert advance(at_work, completed(sequence=2), CREATED).action.state is S.COMPLETED


def test_a_curable_failure_leads_to_another_attempt_after_a_pause() -> None:
    at_work = action(S.RUNNING, sequence=4)
    after = advance(at_work, failed(retriable=True, sequence=5), CREATED + 10).action
    assert (after.state, after.attempt, after.sequence) == (S.PENDING, 2, -1)
    assert CREATED + 11 <= after.not_before <= CREATED + 11.5
    assert [failure.reason for failure in after.earlier_failures] == [reasons.DUMP_FAILED]
    assert next_due(after) == after.not_before


def test_attempts_are_counted() -> None:
    last = action(S.RUNNING, attempt=RULES.attempts)
    after = advance(last, failed(retriable=True, attempt=RULES.attempts), CREATED).action
    assert after.state is S.FAILED
    assert after.failure is not None


def test_no_attempt_is_planned_beyond_the_deadline() -> None:
    after = advance(action(S.RUNNING), failed(retriable=True), DEADLINE - 0.5).action
    assert after.state is S.FAILED


def test_a_curable_failure_of_a_cancelled_action_ends_it() -> None:
    at_work = action(S.RUNNING, cancel_requested=True)
    after = advance(at_work, failed(retriable=True), CREATED).action
    assert after.state is S.CANCELLED
    assert after.failure is not None
    assert after.failure.reason == reasons.CANCELLED


@pytest.mark.parametrize("state", UNFINISHED)
def test_what_is_durable_before_the_job_ends_is_entered_and_shown(state: ActionState) -> None:
    told = event(EventKind.PROGRESS, sequence=7, step="retire", result=RESULT)
    decision = advance(action(state, sequence=9), told, CREATED + 1)
    assert decision.commands == (RecordCheckpoint(facts=FACTS),)
    assert (decision.action.state, decision.action.result) == (S.RUNNING, RESULT)

    later = advance(
        decision.action, event(EventKind.STEP_DONE, sequence=10, step="retire"), CREATED
    )
    assert (later.action.state, later.action.result) == (S.RUNNING, RESULT)


@pytest.mark.parametrize("state", sorted(TERMINAL_STATES))
def test_what_is_durable_is_entered_though_its_action_has_ended(state: ActionState) -> None:
    told = event(EventKind.PROGRESS, step="retire", result=RESULT)
    decision = advance(action(state), told, CREATED)
    assert decision.commands == (RecordCheckpoint(facts=FACTS),)
    assert (decision.action.state, decision.action.result) == (state, None)


def test_a_failure_without_a_reason_gets_one() -> None:
    after = advance(action(S.RUNNING), event(EventKind.FAILED, step="dump"), CREATED).action
    assert after.failure is not None
    assert (after.failure.reason, after.failure.step) == (reasons.INTERNAL, "dump")


def test_waiting_for_another_attempt_is_cancelled_at_once() -> None:
    pausing = action(attempt=2, not_before=CREATED + 5)
    decision = advance(pausing, CancelAsked(), CREATED)
    assert (decision.action.state, decision.commands) == (S.CANCELLED, ())


@pytest.mark.parametrize("state", UNFINISHED)
def test_a_wish_to_cancel_is_told_and_repeated_until_the_node_answers(state: ActionState) -> None:
    wish = TellCancel(node="n1", action=ID)
    asked = advance(action(state), CancelAsked(), CREATED + 1)
    assert asked.action.cancel_requested
    assert wish in asked.commands
    assert wish in advance(asked.action, CancelAsked(), CREATED + 2).commands
    assert wish in advance(asked.action, TimePassed(), CREATED + 2).commands
    due = next_due(asked.action)
    assert due is not None
    assert due <= CREATED + RULES.adopt_seconds


def test_a_node_that_accepts_a_cancelled_job_is_told() -> None:
    waiting = action(S.DISPATCHED, cancel_requested=True)
    decision = advance(waiting, event(EventKind.ACCEPTED), CREATED)
    assert decision.commands == (TellCancel(node="n1", action=ID),)


def test_what_completed_before_the_wish_arrived_is_completed() -> None:
    asked = action(S.RUNNING, cancel_requested=True)
    assert advance(asked, completed(), CREATED).action.state is S.COMPLETED


def test_a_pending_action_fails_at_its_deadline() -> None:
    after = advance(action(), TimePassed(), DEADLINE).action
    assert after.state is S.FAILED
    assert after.failure is not None
    assert after.failure.reason == reasons.DEADLINE_EXCEEDED


@pytest.mark.parametrize("state", [S.DISPATCHED, S.RUNNING])
def test_a_node_gets_a_while_after_the_deadline_to_answer(state: ActionState) -> None:
    waiting = action(state)
    end = DEADLINE + RULES.answer_seconds
    assert advance(waiting, TimePassed(), end - 0.1).action.state is state
    after = advance(waiting, TimePassed(), end).action
    assert after.failure is not None
    assert (after.state, after.failure.reason) == (S.FAILED, reasons.NODE_SILENT)


@pytest.mark.parametrize("state", [S.DISPATCHED, S.RUNNING])
def test_the_job_of_a_quiet_node_is_published_again_less_and_less_often(state: ActionState) -> None:
    waiting = action(state)
    again = PublishJob(job=job_of(waiting))
    assert advance(waiting, TimePassed(), CREATED + RULES.quiet_seconds - 1).commands == ()
    due = next_due(waiting)
    assert due == CREATED + RULES.quiet_seconds
    assert advance(waiting, TimePassed(), due).commands == (again,)
    noted = advance(waiting, Published(attempt=1, at=CREATED + 300), CREATED + 300).action
    assert next_due(noted) == CREATED + 300 + RULES.longest_quiet_seconds


def test_time_never_runs_backwards_in_a_record() -> None:
    later = action(S.RUNNING, updated=CREATED + 9)
    assert advance(later, event(EventKind.ACCEPTED), CREATED + 1).action.updated == CREATED + 9


@pytest.mark.parametrize("state", sorted(TERMINAL_STATES))
def test_nothing_is_due_for_an_ended_action(state: ActionState) -> None:
    assert next_due(action(state)) is None


def test_the_way_back_of_a_step_does_not_hide_how_long_it_took() -> None:
    done = event(EventKind.STEP_DONE, sequence=1, step="dump", seconds=2.0)
    undone = event(EventKind.STEP_DONE, sequence=2, step="dump", seconds=0.1, note="undone")
    for told in ([done, undone], [undone, done]):
        after = action(S.RUNNING)
        for one in told:
            after = advance(after, one, CREATED).action
        [step] = after.steps
        assert (step.seconds, step.note) == (2.0, "undone")
