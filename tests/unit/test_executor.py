"""The executor over actors that fail, hang, are called off and die, with a real ledger."""

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_worker.executor import TRIES, Executor, Outcome, Point, Stop
from node_worker.faults import Refused
from node_worker.ledger import Ledger
from node_worker.plan import Phase, Plan
from schemas import reasons
from schemas.failures import Failure
from schemas.messages import Job
from schemas.orders import DeleteOrder
from tests.support.acting import CHECKPOINT, Gate, Heard, Killed, ListActor, Notes, Trouble

PLAN = Plan(steps=("resolve", "lock", "dump", "seal", "release"), commit="seal")
JOB = Job(action="a", attempt=1, node="n", order=DeleteOrder(checkpoint=CHECKPOINT), deadline=9e9)
RESTARTED = Failure(reason=reasons.WORKER_RESTARTED, message="restarted", retriable=True)
CANCELLED = Failure(reason=reasons.CANCELLED, message="cancelled")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.accept([(JOB, "")], 1.0)
    yield ledger
    ledger.close()


async def no_pause(_: float) -> None:
    await asyncio.sleep(0)


def executor(
    actor: ListActor, ledger: Ledger, *, stop: Stop | None = None, heard: Heard | None = None
) -> Executor[Notes]:
    return Executor(JOB.id, actor, ledger, heard or Heard(), stop=stop or Stop(), pause=no_pause)


async def run(actor: ListActor, ledger: Ledger, *, stop: Stop | None = None) -> Outcome[Notes]:
    return await executor(actor, ledger, stop=stop).run()


class Failing:
    """Raises at the named acts, each as often as it is named."""

    def __init__(self, *at: str, error: Exception | None = None) -> None:
        self.left = list(at)
        self.error = error or Trouble("trouble")

    def __call__(self, act: str) -> None:
        if act in self.left:
            self.left.remove(act)
            raise self.error


async def test_all_steps_in_order_and_a_result(ledger: Ledger) -> None:
    actor, heard = ListActor(PLAN), Heard()
    outcome = await executor(actor, ledger, heard=heard).run()
    assert actor.effects == list(PLAN.steps)
    assert outcome.result is not None
    assert outcome.failure is None
    assert outcome.settled
    assert outcome.notes.done == PLAN.steps
    assert heard.told == [f"{what} {step}" for step in PLAN.steps for what in ("started", "done")]
    assert set(ledger.history(JOB.id).phases.values()) == {Phase.DONE}


@pytest.mark.parametrize("step", PLAN.undoable)
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_failure_up_to_the_commit(ledger: Ledger, step: str, moment: str) -> None:
    error = Refused(reasons.GPU_BUSY, "busy", advice="wait", retriable=True)
    actor = ListActor(PLAN)
    setattr(actor, moment, Failing(f"do {step}", error=error))
    outcome = await run(actor, ledger)
    if (step, moment) == ("seal", "after"):  # it failed, and yet it had landed
        assert actor.effects == list(PLAN.steps)
        assert outcome.result is not None
        return
    assert actor.effects == []
    assert outcome.result is None
    assert outcome.failure == Failure(
        reason=reasons.GPU_BUSY, message="busy", advice="wait", retriable=True, step=step
    )


async def test_a_step_behind_the_commit_is_repeated(ledger: Ledger) -> None:
    actor = ListActor(PLAN, before=Failing(*["do release"] * 3))
    outcome = await run(actor, ledger)
    assert outcome.result is not None
    assert outcome.settled
    assert actor.effects == list(PLAN.steps)


async def test_a_step_behind_the_commit_that_never_succeeds(ledger: Ledger) -> None:
    actor = ListActor(PLAN, before=Failing(*["do release"] * TRIES))
    outcome = await run(actor, ledger)
    assert outcome.result is not None, "the commit stands"
    assert not outcome.settled
    assert outcome.failure is not None
    assert outcome.failure.step == "release"
    again = await run(actor, ledger)
    assert again.settled
    assert again.failure is None
    assert actor.effects == list(PLAN.steps)


async def test_an_undo_that_fails_is_repeated(ledger: Ledger) -> None:
    actor = ListActor(PLAN, before=Failing("do dump", "undo dump", "undo lock", "undo lock"))
    outcome = await run(actor, ledger)
    assert actor.effects == []
    assert outcome.settled


async def test_an_undo_that_never_succeeds(ledger: Ledger) -> None:
    trouble = Failing("do dump", *["undo lock"] * TRIES)
    actor = ListActor(PLAN, before=trouble)
    outcome = await run(actor, ledger)
    assert not outcome.settled
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.UNDO_FAILED
    assert "trouble" in outcome.failure.message
    assert actor.effects == ["resolve", "lock"]
    again = await run(actor, ledger)
    assert again.settled
    assert actor.effects == []


async def test_called_off_before_it_began(ledger: Ledger) -> None:
    stop = Stop()
    stop.call(CANCELLED)
    actor = ListActor(PLAN)
    outcome = await run(actor, ledger, stop=stop)
    assert actor.effects == []
    assert outcome.failure == CANCELLED


def goes_on_undisturbed(_: str) -> None:
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_called_off_in_the_middle_of_a_step(ledger: Ledger) -> None:
    stop, actor = Stop(), ListActor(PLAN, before=goes_on_undisturbed)
    gate = actor.gates["dump"] = Gate()
    running = asyncio.create_task(run(actor, ledger, stop=stop))
    await gate.reached.wait()
    stop.call(CANCELLED)
    stop.call(RESTARTED)
    outcome = await running
    assert actor.effects == []
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.step) == (reasons.CANCELLED, "dump")


async def test_a_step_that_ends_although_it_is_called_off_is_undone(ledger: Ledger) -> None:
    stop, actor = Stop(), ListActor(PLAN, before=goes_on_undisturbed)
    gate = actor.gates["dump"] = Gate()

    async def passed() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await Gate.passed(gate)

    gate.passed = passed  # type: ignore[method-assign]
    running = asyncio.create_task(run(actor, ledger, stop=stop))
    await gate.reached.wait()
    stop.call(CANCELLED)
    outcome = await running
    assert (actor.effects, outcome.failure) == ([], CANCELLED)


async def test_a_short_step_is_done_before_it_is_undone(ledger: Ledger) -> None:
    stop, actor = Stop(), ListActor(PLAN)
    actor.interruptible = frozenset()
    gate = actor.gates["lock"] = Gate()
    running = asyncio.create_task(run(actor, ledger, stop=stop))
    await gate.reached.wait()
    stop.call(CANCELLED)
    await asyncio.sleep(0.01)
    assert not running.done()
    gate.open.set()
    outcome = await running
    assert actor.effects == []
    assert outcome.failure == CANCELLED


@pytest.mark.parametrize("step", ["seal", "release"])
async def test_the_commit_and_what_follows_are_not_called_off(ledger: Ledger, step: str) -> None:
    stop, actor = Stop(), ListActor(PLAN)
    gate = actor.gates[step] = Gate()
    running = asyncio.create_task(run(actor, ledger, stop=stop))
    await gate.reached.wait()
    stop.call(CANCELLED)
    await asyncio.sleep(0.01)
    assert not running.done()
    gate.open.set()
    outcome = await running
    assert outcome.result is not None
    assert actor.effects == list(PLAN.steps)


async def test_goes_back_though_the_ledger_can_write_nothing_more(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk can take the ledger as well: the way back must not need it."""
    actor = ListActor(PLAN)
    write = ledger.step

    def full(job: str, step: str, phase: Phase, notes: bytes | None = None) -> None:
        if actor.effects[-1:] == ["dump"] or phase is not Phase.DOING:
            raise sqlite3.OperationalError("database or disk is full")
        write(job, step, phase, notes)

    def wait_for_dump(act: str) -> None:
        if act == "do dump":
            monkeypatch.setattr(ledger, "step", full)

    actor.before = wait_for_dump
    outcome = await run(actor, ledger)
    assert actor.effects == []
    assert outcome.failure is not None
    assert "disk is full" in outcome.failure.message


async def test_tells_its_observer_of_every_point(ledger: Ledger) -> None:
    seen: list[tuple[str, Point]] = []
    actor = ListActor(PLAN, before=Failing("do dump"))
    watched = Executor(
        JOB.id,
        actor,
        ledger,
        Heard(),
        stop=Stop(),
        observer=lambda step, point: seen.append((step, point)),
        pause=no_pause,
    )
    await watched.run()
    doing = (Point.BEFORE_DO, Point.DONE, Point.DONE_RECORDED)
    undoing = (Point.BEFORE_UNDO, Point.UNDONE, Point.UNDONE_RECORDED)
    assert seen == [
        *[("resolve", point) for point in doing],
        *[("lock", point) for point in doing],
        ("dump", Point.BEFORE_DO),
        *[("dump", point) for point in undoing],
        *[("lock", point) for point in undoing],
        *[("resolve", point) for point in undoing],
    ]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    steps = draw(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True))
    return Plan(steps=tuple(steps), commit=draw(st.sampled_from(steps)))


class Fate:
    """Fails or dies at every act as often as the drawn numbers say so."""

    def __init__(self, draws: list[int]) -> None:
        self.draws = draws

    def __call__(self, act: str) -> None:
        match self.draws.pop() if self.draws else 9:
            case 0:
                raise Trouble(act)
            case 1:
                raise Killed


@settings(max_examples=60)
@given(plan=plans(), draws=st.lists(st.integers(0, 7), max_size=40))
def test_ends_all_done_or_all_undone_however_often_it_dies(plan: Plan, draws: list[int]) -> None:
    effects: list[str] = []
    fate = Fate(draws)
    with tempfile.TemporaryDirectory() as folder:
        outcome = asyncio.run(_lives(plan, effects, fate, Path(folder) / "ledger.db"))
    assert outcome.settled
    assert effects == (list(plan.steps) if outcome.result else [])
    assert (outcome.failure is None) == (outcome.result is not None)


async def _lives(plan: Plan, effects: list[str], fate: Fate, path: Path) -> Outcome[Notes]:
    """One life of the worker after the other, on one ledger, until the job has ended."""
    for life in range(100):
        ledger = Ledger(path)
        try:
            ledger.accept([(JOB, "")], 1.0)
            if life:
                ledger.turn_back(JOB.id, RESTARTED)
            actor = ListActor(plan, effects, before=fate, after=fate)
            outcome = await run(actor, ledger)
            if outcome.settled:
                return outcome
        except Killed:
            continue
        finally:
            ledger.close()
    raise AssertionError("it never ended")
