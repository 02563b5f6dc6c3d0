"""An actor whose steps are effects in a list, with trouble on demand, and what surrounds it."""

import asyncio
from collections.abc import Callable

from node_worker.plan import Plan
from schemas.base import Record
from schemas.messages import Deleted, Result

CHECKPOINT = "00000000-0000-4000-8000-00000000000c"


class Notes(Record, frozen=True, kw_only=True):
    done: tuple[str, ...] = ()


class Trouble(Exception):
    """What a step may meet."""


class Killed(BaseException):
    """The worker dies here; nothing catches it."""


def no_trouble(_: str) -> None:
    return None


class Gate:
    """A step stands still here until it is let go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def passed(self) -> None:
        self.reached.set()
        await self.open.wait()


class ListActor:
    """`before` and `after` are called around each act with `do STEP` or `undo STEP`."""

    notes = Notes

    def __init__(
        self,
        plan: Plan,
        effects: list[str] | None = None,
        *,
        before: Callable[[str], None] = no_trouble,
        after: Callable[[str], None] = no_trouble,
    ) -> None:
        self.plan = plan
        self.interruptible = frozenset(plan.steps) - {plan.commit}
        self.effects = [] if effects is None else effects
        self.before = before
        self.after = after
        self.gates: dict[str, Gate] = {}

    async def do(self, step: str, notes: Notes) -> Notes:
        self.before(f"do {step}")
        if step not in self.effects:
            self.effects.append(step)
        if step in self.gates:
            await self.gates[step].passed()
        self.after(f"do {step}")
        return Notes(done=(*notes.done, step))

    async def undo(self, step: str, notes: Notes) -> None:
        self.before(f"undo {step}")
        if step in self.effects:
            assert self.effects[-1] == step, f"{step} is undone before {self.effects[-1]}"
            self.effects.pop()
        self.after(f"undo {step}")

    async def landed(self, notes: Notes) -> bool:
        self.before("landed")
        return self.plan.commit in self.effects

    async def result(self, notes: Notes) -> Result:
        self.before("result")
        return Deleted(checkpoint=CHECKPOINT)


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def started(self, step: str) -> None:
        self.told.append(f"started {step}")

    def done(self, step: str, seconds: float) -> None:
        assert seconds >= 0
        self.told.append(f"done {step}")

    def undone(self, step: str, seconds: float) -> None:
        assert seconds >= 0
        self.told.append(f"undone {step}")
