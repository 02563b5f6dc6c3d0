"""The CUDA processes of one container, or of one pod, taken through the driver's steps all_of.

All are locked before the first is checkpointed, one after another and against one deadline: a
process that waits for a locked one would never get idle, and then the locks are given back in
reverse. Data moves for all at once. Whatever went wrong, `release_all` brings each process back
to RUNNING from whatever state it is in; doing it twice does no harm.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from kybernate.tasks import all_of, finish, jittered
from node_worker.gpu.port import (
    TRANSFER_TIMEOUT,
    Gpu,
    GpuBusy,
    GpuFailed,
    GpuHung,
    GpuProblem,
    GpuState,
    GpuUnavailable,
    NotCuda,
    ProcessGone,
)
from schemas import reasons

LEAST_SECONDS = 0.05
"""For a call whose turn comes after the deadline: an idle process is locked at once."""
RELEASE_ATTEMPTS = 3
RELEASE_PAUSE = 0.5
SETTLE_SECONDS = 60.0
SETTLE_PAUSE = 0.1
ON_THE_WAY = frozenset({GpuState.CHECKPOINTING, GpuState.RESTORING})


class NotReleased(GpuProblem):
    """Processes that could not be brought back to RUNNING, each with its reason."""

    reason = reasons.UNDO_FAILED
    advice = "End these processes and restore the workload from its last checkpoint."

    def __init__(self, problems: Mapping[int, GpuProblem]) -> None:
        told = "; ".join(f"process {pid}: {problem}" for pid, problem in problems.items())
        super().__init__(f"GPU processes stay locked or checkpointed: {told}")
        self.problems = dict(problems)


def time_left(deadline: float, clock: Callable[[], float] = time.time) -> float:
    """Seconds for a call that must be back by the deadline (seconds since the epoch)."""
    return max(LEAST_SECONDS, deadline - clock())


async def lock_all(
    gpu: Gpu, pids: Sequence[int], *, deadline: float, clock: Callable[[], float] = time.time
) -> None:
    """Lock every process before the deadline (seconds since the epoch), or none."""
    tried: list[int] = []
    try:
        for pid in pids:
            tried.append(pid)
            await gpu.lock(pid, time_left(deadline, clock))
    except BaseException:
        await finish(_release_in_order(gpu, tried[::-1]))
        raise


async def checkpoint_all(
    gpu: Gpu, pids: Sequence[int], *, timeout: float = TRANSFER_TIMEOUT
) -> None:
    """Move the GPU memory of locked processes to the host; after a failure, `release_all`."""
    await all_of(gpu.checkpoint(pid, timeout=timeout) for pid in pids)


async def restore_all(
    gpu: Gpu,
    pids: Sequence[int],
    pairs: Mapping[str, str] | None = None,
    *,
    timeout: float = TRANSFER_TIMEOUT,
) -> None:
    """Move it back; the processes stay locked."""
    await all_of(gpu.restore(pid, pairs, timeout=timeout) for pid in pids)


async def unlock_all(gpu: Gpu, pids: Sequence[int]) -> None:
    await all_of(gpu.unlock(pid) for pid in pids)


async def release_all(
    gpu: Gpu, pids: Sequence[int], pairs: Mapping[str, str] | None = None
) -> None:
    """Bring each process back to RUNNING, whatever state it is in; NotReleased names the others."""
    outcomes = await asyncio.gather(*(_release(gpu, pid, pairs) for pid in pids))
    _tell(dict(zip(pids, outcomes, strict=True)))


async def all_running(gpu: Gpu, pids: Iterable[int]) -> bool:
    """Whether all have their GPU memory and go on; one that has ended does not."""
    try:
        states = [await gpu.state(pid) for pid in pids]
    except (NotCuda, ProcessGone):
        return False
    return all(state is GpuState.RUNNING for state in states)


async def _release_in_order(gpu: Gpu, pids: Sequence[int]) -> None:
    _tell({pid: await _release(gpu, pid, None) for pid in pids})


def _tell(outcomes: Mapping[int, GpuProblem | None]) -> None:
    problems = {pid: problem for pid, problem in outcomes.items() if problem}
    if problems:
        raise NotReleased(problems)


async def _release(gpu: Gpu, pid: int, pairs: Mapping[str, str] | None) -> GpuProblem | None:
    """What is in the way, where one process cannot be released."""
    problem: GpuProblem | None = None
    for attempt in range(RELEASE_ATTEMPTS):
        if attempt:
            await asyncio.sleep(jittered(RELEASE_PAUSE))
        try:
            await _walk_back(gpu, pid, pairs)
        except (NotCuda, ProcessGone):
            return None  # nothing is held
        except (GpuBusy, GpuFailed, GpuHung, GpuUnavailable) as error:
            problem = error
        else:
            return None
    return problem


async def _walk_back(gpu: Gpu, pid: int, pairs: Mapping[str, str] | None) -> None:
    state = await _settled(gpu, pid)
    if state is GpuState.CHECKPOINTED:
        await gpu.restore(pid, pairs)
        state = await _settled(gpu, pid)
    if state is GpuState.LOCKED:
        await gpu.unlock(pid)
        state = await _settled(gpu, pid)
    if state is not GpuState.RUNNING:
        raise GpuFailed(f"the driver reports process {pid} as {state}", code=state)


async def _settled(gpu: Gpu, pid: int) -> GpuState:
    """Its state once no checkpoint or restore is on the way, begun by a helper that is gone."""
    end = time.monotonic() + SETTLE_SECONDS
    while (state := await gpu.state(pid)) in ON_THE_WAY:
        if time.monotonic() > end:
            raise GpuHung(f"process {pid} is {state} for more than {SETTLE_SECONDS:g} s")
        await asyncio.sleep(SETTLE_PAUSE)
    return state
