"""Several CUDA processes taken through the steps together: whatever fails, nobody ends locked."""

import asyncio
import time
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_worker.gpu import group
from node_worker.gpu.port import (
    Gpu,
    GpuBusy,
    GpuFailed,
    GpuHung,
    GpuProblem,
    GpuState,
    NotCuda,
    ProcessGone,
)
from schemas.gpus import GpuFacts, GpuProcess

STEPS = {
    "lock": (GpuState.RUNNING, GpuState.LOCKED),
    "checkpoint": (GpuState.LOCKED, GpuState.CHECKPOINTED),
    "restore": (GpuState.CHECKPOINTED, GpuState.LOCKED),
    "unlock": (GpuState.LOCKED, GpuState.RUNNING),
}
PROBLEMS: tuple[GpuProblem, ...] = (
    GpuBusy("busy"),
    GpuHung("hung"),
    GpuFailed("failed", code="CUDA_ERROR_UNKNOWN"),
)


class ScriptedGpu:
    """Processes as a table of states; each call goes wrong where the script says so."""

    def __init__(self, pids: Sequence[int], script: Mapping[int, GpuProblem] | None = None) -> None:
        self.states = dict.fromkeys(pids, GpuState.RUNNING)
        self.script = dict(script or {})
        self.after_work: set[int] = set()
        self.calls: list[str] = []

    async def facts(self) -> tuple[GpuFacts, ...]:
        return ()

    async def absence(self) -> str:
        return ""

    async def processes(self, pids: Sequence[int]) -> tuple[GpuProcess, ...]:
        return tuple(GpuProcess(pid=pid) for pid in pids if pid in self.states)

    async def state(self, pid: int) -> GpuState:
        if pid not in self.states:
            raise NotCuda(f"{pid}")
        return self.states[pid]

    async def lock(self, pid: int, timeout: float) -> None:
        assert timeout > 0
        await self._step("lock", pid)

    async def checkpoint(self, pid: int, *, timeout: float = 1.0) -> None:
        await self._step("checkpoint", pid)

    async def restore(
        self, pid: int, pairs: Mapping[str, str] | None = None, *, timeout: float = 1.0
    ) -> None:
        await self._step("restore", pid)

    async def unlock(self, pid: int) -> None:
        await self._step("unlock", pid)

    async def _step(self, name: str, pid: int) -> None:
        number = len(self.calls)
        self.calls.append(f"{name} {pid}")
        problem = self.script.get(number)
        await asyncio.sleep(0)
        if problem and number not in self.after_work:
            raise problem
        if pid not in self.states:
            raise ProcessGone(f"{pid}")
        needed, reached = STEPS[name]
        if self.states[pid] is not needed:
            raise GpuFailed("out of order", code="CUDA_ERROR_ILLEGAL_STATE")
        self.states[pid] = reached
        if problem:
            raise problem


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "RELEASE_PAUSE", 0.0)


async def round_trip(gpu: Gpu, pids: Sequence[int]) -> None:
    await group.lock_all(gpu, pids, deadline=time.time() + 60)
    await group.checkpoint_all(gpu, pids)
    await group.restore_all(gpu, pids)
    await group.unlock_all(gpu, pids)


async def test_all_are_locked_before_the_first_is_checkpointed() -> None:
    gpu = ScriptedGpu([1, 2, 3])

    await round_trip(gpu, [1, 2, 3])

    assert gpu.calls[:3] == ["lock 1", "lock 2", "lock 3"]
    assert sorted(gpu.calls[3:6]) == ["checkpoint 1", "checkpoint 2", "checkpoint 3"]
    assert set(gpu.states.values()) == {GpuState.RUNNING}


async def test_a_lock_that_fails_gives_the_others_back_in_reverse() -> None:
    gpu = ScriptedGpu([1, 2, 3], {2: GpuBusy("busy")})

    with pytest.raises(GpuBusy):
        await group.lock_all(gpu, [1, 2, 3], deadline=time.time() + 60)

    assert gpu.calls[3:] == ["unlock 2", "unlock 1"]
    assert set(gpu.states.values()) == {GpuState.RUNNING}


async def test_a_hung_lock_that_was_granted_after_all_is_given_back() -> None:
    gpu = ScriptedGpu([1, 2], {1: GpuHung("hung")})
    gpu.after_work = {1}

    with pytest.raises(GpuHung):
        await group.lock_all(gpu, [1, 2], deadline=time.time() + 60)

    assert set(gpu.states.values()) == {GpuState.RUNNING}


async def test_a_cancelled_lock_gives_everything_back_before_it_ends() -> None:
    gpu = ScriptedGpu([1, 2])
    locking = asyncio.create_task(group.lock_all(gpu, [1, 2], deadline=time.time() + 60))
    while gpu.calls != ["lock 1", "lock 2"]:  # noqa: ASYNC110 - a few turns of the loop
        await asyncio.sleep(0)

    locking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await locking
    assert set(gpu.states.values()) == {GpuState.RUNNING}


async def test_every_lock_gets_what_is_left_of_the_deadline() -> None:
    times = iter([100.0, 103.0])
    given: list[float] = []

    class Clocked(ScriptedGpu):
        async def lock(self, pid: int, timeout: float) -> None:
            given.append(timeout)
            await super().lock(pid, timeout)

    await group.lock_all(Clocked([1, 2]), [1, 2], deadline=110.0, clock=lambda: next(times))

    assert given == [10.0, 7.0]


async def test_all_checkpoints_are_awaited_though_one_fails() -> None:
    gpu = ScriptedGpu([1, 2, 3], {3: GpuFailed("no", code="CUDA_ERROR_UNKNOWN")})
    await group.lock_all(gpu, [1, 2, 3], deadline=time.time() + 60)

    with pytest.raises(GpuFailed):
        await group.checkpoint_all(gpu, [1, 2, 3])

    assert gpu.states[2] is gpu.states[3] is GpuState.CHECKPOINTED


async def test_a_failed_process_is_named_and_the_others_are_released() -> None:
    gpu = ScriptedGpu([1, 2])
    gpu.states = {1: GpuState.FAILED, 2: GpuState.CHECKPOINTED}

    with pytest.raises(group.NotReleased, match="process 1") as caught:
        await group.release_all(gpu, [1, 2])

    assert caught.value.problems.keys() == {1}
    assert gpu.states[2] is GpuState.RUNNING


async def test_a_process_on_the_way_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "SETTLE_PAUSE", 0.0)
    seen = iter([GpuState.CHECKPOINTING, GpuState.CHECKPOINTING])

    class Settling(ScriptedGpu):
        async def state(self, pid: int) -> GpuState:
            return next(seen, None) or await super().state(pid)

    gpu = Settling([1])
    gpu.states[1] = GpuState.CHECKPOINTED

    await group.release_all(gpu, [1])

    assert gpu.states[1] is GpuState.RUNNING


async def test_a_process_that_never_settles_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(group, "SETTLE_PAUSE", 0.0)
    gpu = ScriptedGpu([1])
    gpu.states[1] = GpuState.RESTORING

    with pytest.raises(group.NotReleased, match="restoring"):
        await group.release_all(gpu, [1])


async def test_processes_without_cuda_or_gone_need_no_release() -> None:
    await group.release_all(ScriptedGpu([]), [1, 2])


@settings(max_examples=300)
@given(
    count=st.integers(1, 4),
    problems=st.dictionaries(st.integers(0, 14), st.sampled_from(PROBLEMS), max_size=4),
    late=st.sets(st.integers(0, 14)),
)
def test_whatever_fails_nobody_ends_locked(
    count: int, problems: dict[int, GpuProblem], late: set[int]
) -> None:
    pids = range(1, count + 1)
    gpu = ScriptedGpu(pids, problems)
    gpu.after_work = late

    async def attempt() -> None:
        try:
            await round_trip(gpu, pids)
        except GpuProblem:
            gpu.script.clear()
            await group.release_all(gpu, pids)

    asyncio.run(attempt())

    assert set(gpu.states.values()) == {GpuState.RUNNING}


@settings(max_examples=200)
@given(
    states=st.dictionaries(st.integers(1, 5), st.sampled_from(GpuState), min_size=1),
    problems=st.dictionaries(st.integers(0, 20), st.sampled_from(PROBLEMS)),
)
def test_a_release_succeeds_or_names_who_is_not_running(
    states: dict[int, GpuState], problems: dict[int, GpuProblem]
) -> None:
    settled = {pid: state for pid, state in states.items() if state not in group.ON_THE_WAY}
    gpu = ScriptedGpu([], problems)
    gpu.states = dict(settled)
    named: set[int] = set()

    try:
        asyncio.run(group.release_all(gpu, list(settled)))
    except group.NotReleased as error:
        named = set(error.problems)

    assert {pid for pid, state in gpu.states.items() if state is not GpuState.RUNNING} <= named
