"""Random lives of actions: whatever arrives, in whatever order, the rules hold."""

from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller.decisions import (
    CancelAsked,
    Decision,
    Input,
    Published,
    PublishJob,
    RecordCheckpoint,
    TimePassed,
)
from controller.machine import Rules, advance, next_due
from schemas import reasons
from schemas.actions import Action, ActionState
from schemas.failures import Failure
from schemas.manifest import CheckpointFacts
from schemas.messages import TERMINAL_EVENTS, Checkpointed, EventKind, JobEvent
from schemas.orders import CheckpointOrder, Target, only_part
from tests.support.checkpoints import parts_of

ID = "11111111-2222-3333-4444-555555555555"
TARGET = Target(namespace="default", container="counter")
FACTS = CheckpointFacts(id=ID, node="n1", parts=parts_of(TARGET), created=5.0, size=1)
RESULT = Checkpointed(checkpoint=FACTS)
STEPS = st.sampled_from(["resolve", "dump", "hash"])


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.limits = Rules()
        self.action = Action(
            id=ID,
            kind="checkpoint",
            node="n1",
            order=CheckpointOrder(parts=only_part(TARGET), checkpoint=ID),
            state=ActionState.PENDING,
            created=self.now,
            updated=self.now,
            deadline=self.now + 60,
        )
        self.sent: list[JobEvent] = []
        self.completed_this_attempt = False
        self.ended: Action | None = None

    def give(self, given: Input) -> Decision:
        before = self.action
        decision = advance(before, given, self.now, self.limits)
        self.action = decision.action
        self.check_step(before, decision)
        if self.action.ended and self.ended is None:
            self.ended = self.action
        return decision

    def check_step(self, before: Action, decision: Decision) -> None:
        after = decision.action
        assert after.attempt >= before.attempt
        assert after.updated >= before.updated
        assert after.attempt > before.attempt or after.sequence >= before.sequence
        assert not before.cancel_requested or after.cancel_requested
        assert after.earlier_failures[: len(before.earlier_failures)] == before.earlier_failures
        for command in decision.commands:
            if isinstance(command, PublishJob):
                assert not after.ended
                assert command.job.attempt == after.attempt
                assert self.now >= after.not_before

    def report(self, kind: EventKind, **fields: Any) -> Decision:
        attempt = fields.pop("attempt", self.action.attempt)
        event = JobEvent(action=ID, attempt=attempt, node="n1", kind=kind, at=self.now, **fields)
        self.sent.append(event)
        return self.give(event)

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if not self.action.ended:
            self.give(TimePassed())

    @rule()
    def due_work_is_done(self) -> None:
        due = next_due(self.action, self.limits)
        if due is not None:
            self.now = max(self.now, due)
            for command in self.give(TimePassed()).commands:
                if isinstance(command, PublishJob):
                    self.give(Published(attempt=command.job.attempt, at=self.now))

    @rule(back=st.integers(0, 2))
    def publishing_is_noted(self, back: int) -> None:
        self.give(Published(attempt=max(1, self.action.attempt - back), at=self.now))

    @precondition(lambda self: not self.action.ended)
    @rule()
    def somebody_cancels(self) -> None:
        self.give(CancelAsked())

    @rule(
        kind=st.sampled_from(sorted(set(EventKind) - TERMINAL_EVENTS)),
        sequence=st.integers(0, 20),
        step=STEPS,
    )
    def node_reports(self, kind: EventKind, sequence: int, step: str) -> None:
        self.report(kind, sequence=sequence, step=step)

    @rule(sequence=st.integers(0, 20))
    def node_is_durable(self, sequence: int) -> None:
        decision = self.report(EventKind.PROGRESS, sequence=sequence, step="retire", result=RESULT)
        if not self.action.ended:
            assert RecordCheckpoint(facts=FACTS) in decision.commands or self.action.result
            assert self.action.result == RESULT

    @rule(retriable=st.booleans(), sequence=st.integers(0, 20))
    def node_fails(self, retriable: bool, sequence: int) -> None:  # noqa: FBT001
        failure = Failure(reason=reasons.DUMP_FAILED, message="no", retriable=retriable)
        self.report(EventKind.FAILED, sequence=sequence, failure=failure)

    @rule(sequence=st.integers(0, 20))
    def node_cancels(self, sequence: int) -> None:
        self.report(EventKind.CANCELLED, sequence=sequence)

    @rule(sequence=st.integers(0, 20), back=st.integers(0, 2))
    def node_completes(self, sequence: int, back: int) -> None:
        unfinished = not self.action.ended
        attempt = max(1, self.action.attempt - back)
        current = attempt == self.action.attempt
        decision = self.report(
            EventKind.COMPLETED, attempt=attempt, sequence=sequence, result=RESULT
        )
        assert RecordCheckpoint(facts=FACTS) in decision.commands
        if unfinished and current:
            assert self.action.state is ActionState.COMPLETED
            assert self.action.result == RESULT

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def an_event_comes_again(self, data: st.DataObject) -> None:
        again = data.draw(st.sampled_from(self.sent))
        decision = self.give(again)
        if again.kind is EventKind.COMPLETED:
            assert RecordCheckpoint(facts=FACTS) in decision.commands

    @invariant()
    def an_ended_action_stays_as_it_ended(self) -> None:
        if self.ended is not None:
            assert msgspec.structs.replace(self.action, steps=()) == msgspec.structs.replace(
                self.ended, steps=()
            )

    @invariant()
    def an_unfinished_action_has_something_due(self) -> None:
        due = next_due(self.action, self.limits)
        assert (due is None) == self.action.ended
        if due is not None:
            assert due <= self.action.deadline + self.limits.answer_seconds

    @invariant()
    def every_ending_explains_itself(self) -> None:
        if self.action.state is ActionState.COMPLETED:
            assert self.action.result is not None
        elif self.action.ended:
            assert self.action.failure is not None
            assert self.action.failure.message

    @invariant()
    def attempts_are_limited(self) -> None:
        assert 1 <= self.action.attempt <= self.limits.attempts
        assert len(self.action.earlier_failures) < self.limits.attempts


TestLives = Lives.TestCase
