"""What all steps have in common, and which plan an order is.

A plan's class names its steps in their order, each with what does it and what undoes it. It may
keep things in itself from one step to the next: after a crash nothing in front of the commit goes
on. What undoing, or going on behind the commit, needs to know stands in the notes.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from kybernate.store import CheckpointStore
from node_worker.containerd.port import Runtime
from node_worker.gpu.port import Gpu
from node_worker.ledger import Ledger
from node_worker.plan import Plan
from node_worker.settings import WorkerSettings
from node_worker.surroundings import Look, look
from schemas.manifest import HostFacts
from schemas.messages import Result

N = TypeVar("N", bound=msgspec.Struct)


class Means(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps work with."""

    settings: WorkerSettings
    runtime: Runtime
    gpu: Gpu
    store: CheckpointStore
    ledger: Ledger
    host: HostFacts
    look: Look = look


class Progress(Protocol):
    """Tells what happens in a step."""

    def progress(self, step: str, done_bytes: int, total_bytes: int) -> None:
        """How far it is."""

    def durable(self, step: str, result: Result) -> None:
        """What is true from now on, though the job goes on."""

    def remark(self, step: str, words: str) -> None:
        """What a reader of the action should know."""


async def nothing(_: Any) -> None:
    """The undo of a step that leaves nothing behind."""


class Step(msgspec.Struct, Generic[N], frozen=True, kw_only=True):
    name: str
    do: Callable[[N], Awaitable[N | None]]
    """Returns new notes, or None where they stay as they are."""
    undo: Callable[[N], Awaitable[None]] = nothing
    long: bool = False
    """It can take a while, and can be called off in the middle."""


class StepActor(ABC, Generic[N]):
    """An actor made of its steps."""

    def __init__(self, notes: type[N], steps: tuple[Step[N], ...], *, commit: str) -> None:
        self.notes = notes
        self.plan = Plan(steps=tuple(step.name for step in steps), commit=commit)
        self.interruptible = frozenset(step.name for step in steps if step.long)
        self._steps = {step.name: step for step in steps}

    async def do(self, step: str, notes: N) -> N:
        after = await self._steps[step].do(notes)
        return notes if after is None else after

    async def undo(self, step: str, notes: N) -> None:
        await self._steps[step].undo(notes)

    @abstractmethod
    async def landed(self, notes: N, /) -> bool:
        """Whether the commit step took effect."""

    @abstractmethod
    async def result(self, notes: N, /) -> Result:
        """What the committed job has brought about."""
