"""What comes next in a job: steps in order, one commit point, and a way back. Pure.

A plan is a row of named steps. Up to and with the commit step everything can be undone, and is,
in reverse, when anything fails. Behind the commit there is only forward: its steps can be
repeated and are repeated until they succeed.

The history says of each step what was written down last. Read at rest, when nothing is at work,
it may hold doubts, because a worker can die between an act and its record:

- DOING or UNDOING of an ordinary step: it may have had its effect or part of it. It is undone
  (again); every undo copes with that.
- DOING or FAILED of the commit step: nobody knows whether it took effect, so the world is asked
  (`Ask`). The answer is recorded as DONE or MISSED and decides the direction for good.
- Turned back: the decision not to go on is a record of its own, because nothing need have failed
  for it (a cancellation, a deadline, a restart of the worker).
"""

from collections.abc import Mapping
from enum import StrEnum

from schemas.base import Record


class Phase(StrEnum):
    """The last that was written down about a step."""

    DOING = "doing"
    DONE = "done"
    FAILED = "failed"
    MISSED = "missed"
    """Only of the commit step: the world was asked, it had no effect."""
    UNDOING = "undoing"
    UNDONE = "undone"


IN_DOUBT = frozenset({Phase.DOING, Phase.FAILED})


class Plan(Record, frozen=True, kw_only=True):
    steps: tuple[str, ...]
    commit: str

    def __post_init__(self) -> None:
        if self.commit not in self.steps or len(set(self.steps)) < len(self.steps):
            raise ValueError(f"{self.commit!r} must be one of the distinct steps {self.steps}")

    @property
    def undoable(self) -> tuple[str, ...]:
        """The steps up to and with the commit."""
        return self.steps[: self.steps.index(self.commit) + 1]

    @property
    def settling(self) -> tuple[str, ...]:
        """The steps behind the commit."""
        return self.steps[self.steps.index(self.commit) + 1 :]


class History(Record, frozen=True, kw_only=True):
    phases: Mapping[str, Phase] = {}
    turned_back: bool = False


class Do(Record, frozen=True, kw_only=True):
    step: str


class Undo(Record, frozen=True, kw_only=True):
    step: str


class Ask(Record, frozen=True, kw_only=True):
    """Find out whether the commit step took effect."""

    step: str


class Finish(Record, frozen=True, kw_only=True):
    committed: bool


Move = Do | Undo | Ask | Finish


def next_move(plan: Plan, history: History) -> Move:
    """What to do now, given what was written down and that nothing is at work."""
    commit = history.phases.get(plan.commit)
    if commit is Phase.DONE:
        return _forward(plan.settling, history) or Finish(committed=True)
    if commit in IN_DOUBT:
        return Ask(step=plan.commit)
    if goes_back(plan, history):
        return _back(plan, history) or Finish(committed=False)
    return _forward(plan.undoable, history) or Finish(committed=False)


def committed(plan: Plan, history: History) -> bool:
    return history.phases.get(plan.commit) is Phase.DONE


def goes_back(plan: Plan, history: History) -> bool:
    """Not committed, and something failed, is in doubt or is being undone."""
    if committed(plan, history):
        return False
    return history.turned_back or any(
        history.phases.get(step, Phase.DONE) is not Phase.DONE for step in plan.undoable
    )


def _forward(steps: tuple[str, ...], history: History) -> Do | None:
    for step in steps:
        if history.phases.get(step) is not Phase.DONE:
            return Do(step=step)
    return None


def _back(plan: Plan, history: History) -> Undo | None:
    for step in reversed(plan.undoable):
        if history.phases.get(step, Phase.UNDONE) is not Phase.UNDONE:
            return Undo(step=step)
    return None
