"""A plan walked by an interpreter that fails, is cancelled and dies wherever hypothesis likes.

The world is a set of effects. Whatever happens, a walk that reaches its end has either left no
effect at all or committed with every step done; and it always reaches its end once the trouble
stops.
"""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_worker.plan import (
    Ask,
    Do,
    Finish,
    History,
    Phase,
    Plan,
    Undo,
    committed,
    goes_back,
    next_move,
)

PLAN = Plan(steps=("resolve", "lock", "dump", "seal", "release"), commit="seal")


def phases(**of: Phase) -> dict[str, Phase]:
    return dict(of)


def test_goes_through_its_steps_in_order() -> None:
    done: dict[str, Phase] = {}
    for step in PLAN.steps:
        assert next_move(PLAN, History(phases=done)) == Do(step=step)
        done[step] = Phase.DONE
    assert next_move(PLAN, History(phases=done)) == Finish(committed=True)


@pytest.mark.parametrize("left", [Phase.DOING, Phase.FAILED, Phase.UNDOING])
def test_a_step_in_doubt_is_undone(left: Phase) -> None:
    history = History(phases=phases(resolve=Phase.DONE, lock=left))
    assert next_move(PLAN, history) == Undo(step="lock")


@pytest.mark.parametrize("left", [Phase.DOING, Phase.FAILED])
def test_a_commit_in_doubt_is_asked_about(left: Phase) -> None:
    before = dict.fromkeys(("resolve", "lock", "dump"), Phase.DONE)
    assert next_move(PLAN, History(phases=before | {"seal": left})) == Ask(step="seal")


def test_turning_back_is_heeded_between_steps_and_not_behind_the_commit() -> None:
    done = dict.fromkeys(("resolve", "lock"), Phase.DONE)
    assert next_move(PLAN, History(phases=done, turned_back=True)) == Undo(step="lock")
    sealed = dict.fromkeys(PLAN.undoable, Phase.DONE)
    assert next_move(PLAN, History(phases=sealed, turned_back=True)) == Do(step="release")


def test_a_failed_step_behind_the_commit_is_done_again() -> None:
    history = History(phases=dict.fromkeys(PLAN.undoable, Phase.DONE) | {"release": Phase.FAILED})
    assert next_move(PLAN, history) == Do(step="release")
    assert not goes_back(PLAN, history)


@pytest.mark.parametrize(
    ("steps", "commit"), [(("a", "b"), "c"), (("a", "a"), "a"), ((), "a")], ids=str
)
def test_a_plan_needs_distinct_steps_and_a_commit_among_them(
    steps: tuple[str, ...], commit: str
) -> None:
    with pytest.raises(ValueError, match="distinct"):
        Plan(steps=steps, commit=commit)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    steps = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True))
    return Plan(steps=tuple(steps), commit=draw(st.sampled_from(steps)))


class Died(Exception):
    """The worker was killed."""


class World:
    """Effects of steps, a record of them, and trouble at every point as the draw has it."""

    def __init__(self, plan: Plan, trouble: Callable[[str], bool]) -> None:
        self.plan = plan
        self.trouble = trouble
        self.effects: list[str] = []
        self.record: dict[str, Phase] = {}
        self.turned_back = False

    def history(self) -> History:
        return History(phases=dict(self.record), turned_back=self.turned_back)

    def die_perhaps(self) -> None:
        if self.trouble("die"):
            raise Died

    def write(self, step: str, phase: Phase) -> None:
        self.die_perhaps()
        self.record[step] = phase
        self.die_perhaps()

    def do(self, step: str) -> None:
        self.write(step, Phase.DOING)
        before = self.trouble("fail before")
        if not before and step not in self.effects:
            self.effects.append(step)
        failed = before or self.trouble("fail after")
        self.write(step, Phase.FAILED if failed else Phase.DONE)

    def undo(self, step: str) -> None:
        self.write(step, Phase.UNDOING)
        if step in self.effects:
            assert self.effects[-1] == step, "undone out of order"
            self.effects.pop()
        self.write(step, Phase.UNDONE)

    def walk(self) -> Finish:
        """To the end, in one life of the worker."""
        while True:
            if self.trouble("turn back") and not committed(self.plan, self.history()):
                self.turned_back = True
            match next_move(self.plan, self.history()):
                case Do(step=step):
                    self.do(step)
                case Undo(step=step):
                    self.undo(step)
                case Ask(step=step):
                    self.write(step, Phase.DONE if step in self.effects else Phase.MISSED)
                case Finish() as end:
                    return end


@given(plan=plans(), draws=st.data())
def test_ends_all_done_or_all_undone_whatever_happens(plan: Plan, draws: st.DataObject) -> None:
    budget = draws.draw(st.lists(st.integers(0, 7), max_size=60))

    def trouble(_: str) -> bool:
        return bool(budget) and budget.pop() == 0

    world = World(plan, trouble)
    end = None
    for _ in range(100):
        try:
            end = world.walk()
            break
        except Died:
            world.turned_back = world.turned_back or not committed(plan, world.history())
    assert end is not None, "it never ended"
    assert world.effects == (list(plan.steps) if end.committed else [])
    assert end.committed == committed(plan, world.history())
    assert next_move(plan, world.history()) == end, "an ended plan stays ended"


@given(plan=plans(), draws=st.data())
def test_every_history_has_a_next_move_and_never_does_behind_a_doubt(
    plan: Plan, draws: st.DataObject
) -> None:
    known = draws.draw(st.dictionaries(st.sampled_from(plan.steps), st.sampled_from(Phase)))
    history = History(phases=known, turned_back=draws.draw(st.booleans()))
    move = next_move(plan, history)
    if isinstance(move, Do) and move.step in plan.undoable:
        earlier = plan.steps[: plan.steps.index(move.step)]
        assert all(known.get(step) is Phase.DONE for step in earlier)
        assert not history.turned_back
    if isinstance(move, Undo):
        assert not committed(plan, history)
