"""The worker's side of the GPU helper process: `open_gpu()` gives a `Gpu` that survives its helper.

Every call runs in a task of its own, so that it keeps its process's turn when its caller is
cancelled. A call that outlasts its time kills the helper; the other calls then go on with the
next helper, which first looks whether the killed one had got there already.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from kybernate.tasks import jittered
from node_worker.gpu import helper_process, protocol
from node_worker.gpu.helper import Helper, HelperEnded, HelperSettings
from node_worker.gpu.port import (
    TRANSFER_TIMEOUT,
    GpuBusy,
    GpuFailed,
    GpuHung,
    GpuProblem,
    GpuState,
    GpuUnavailable,
    NotCuda,
    ProcessGone,
)
from node_worker.gpu.protocol import Call, Fault, Reply
from schemas.gpus import GpuFacts, GpuProcess

T = TypeVar("T")

ATTEMPTS = 3
RESTART_PAUSE = 0.2


@contextlib.asynccontextmanager
async def open_gpu(settings: HelperSettings) -> AsyncIterator["HelperGpu"]:
    """The GPUs of this node; the helper starts with the first call."""
    gpu = HelperGpu(settings)
    try:
        yield gpu
    finally:
        await gpu.close()


class HelperGpu:
    """A `Gpu` behind a helper process that is started, watched, killed and replaced."""

    def __init__(self, settings: HelperSettings) -> None:
        self._settings = settings
        self._helper: Helper | None = None
        self._starting = asyncio.Lock()
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._calls: set[asyncio.Task[Any]] = set()
        self._inventory: asyncio.Task[protocol.Inventory] | None = None

    async def facts(self) -> tuple[GpuFacts, ...]:
        return (await self._known()).gpus

    async def absence(self) -> str:
        return (await self._known()).absence

    async def processes(self, pids: Sequence[int]) -> tuple[GpuProcess, ...]:
        if (await self._known()).absence:
            return ()
        call = protocol.AskProcesses(pids=tuple(pids))
        return (await self._call(call, self._settings.call_timeout)).processes

    async def state(self, pid: int) -> GpuState:
        reply = await self._call(protocol.AskState(pid=pid), self._settings.call_timeout)
        return GpuState(reply.state)

    async def lock(self, pid: int, timeout: float) -> None:
        call = protocol.Lock(pid=pid, timeout=timeout)
        await self._call(call, timeout + self._settings.lock_grace)

    async def checkpoint(self, pid: int, *, timeout: float = TRANSFER_TIMEOUT) -> None:
        await self._call(protocol.Checkpoint(pid=pid), timeout)

    async def restore(
        self,
        pid: int,
        pairs: Mapping[str, str] | None = None,
        *,
        timeout: float = TRANSFER_TIMEOUT,
    ) -> None:
        chosen = dict(pairs) if pairs else None
        await self._call(protocol.Restore(pid=pid, pairs=chosen), timeout)

    async def unlock(self, pid: int) -> None:
        await self._call(protocol.Unlock(pid=pid), self._settings.call_timeout)

    @property
    def helper_pid(self) -> int | None:
        return self._helper.pid if self._helper and not self._helper.ended else None

    async def close(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        if self._helper:
            await self._helper.end()

    async def _known(self) -> protocol.Inventory:
        """What GPUs there are, asked once: they do not change under a running worker.

        A caller that does not wait for the answer leaves it to the next one.
        """
        if self._inventory is None or _failed(self._inventory):
            self._inventory = self._watched(self._take_stock(), "gpu inventory")
        return await asyncio.shield(self._inventory)

    async def _take_stock(self) -> protocol.Inventory:
        reply = await self._call(protocol.AskFacts(), self._settings.call_timeout)
        inventory = reply.inventory or protocol.Inventory()
        if inventory.absence and self._helper:
            await self._helper.end()
        return inventory

    async def _call(self, call: Call, timeout: float) -> Reply:
        name = f"gpu {type(call).__name__}"
        reply = await asyncio.shield(self._watched(self._in_turn(call, timeout), name))
        if reply.fault:
            raise _problem(call, reply.fault)
        return reply

    def _watched(self, work: Coroutine[Any, Any, T], name: str) -> "asyncio.Task[T]":
        task = asyncio.create_task(work, name=name)
        self._calls.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone; asyncio would complain

    async def _in_turn(self, call: Call, timeout: float) -> Reply:
        pid = getattr(call, "pid", None)
        if pid is None:
            return await self._ask(call, timeout)
        turn = self._turns.setdefault(pid, asyncio.Lock())  # lives while somebody waits for it
        async with turn:
            return await self._ask(call, timeout)

    async def _ask(self, call: Call, timeout: float) -> Reply:
        status: int | None = None
        for attempt in range(ATTEMPTS):
            helper = await self._living_helper()
            try:
                async with asyncio.timeout(timeout):
                    return await helper.ask(call, again=attempt > 0)
            except TimeoutError as error:
                await helper.kill()
                raise GpuHung(_hung(call, timeout)) from error
            except HelperEnded:
                status = helper.status
                if status == helper_process.EXIT_LOCKED:
                    break
                await asyncio.sleep(jittered(RESTART_PAUSE))
        raise GpuUnavailable(
            f"the GPU helper process ended during {_what(call)}, tried {attempt + 1} times: "
            f"status {status}{_meaning(status)}"
        )

    async def _living_helper(self) -> Helper:
        async with self._starting:
            if self._helper is None or self._helper.ended:
                try:
                    self._helper = await Helper.start(self._settings)
                except OSError as error:
                    message = f"the GPU helper process cannot be started: {error}"
                    raise GpuUnavailable(message) from error
            return self._helper


def _failed(task: "asyncio.Task[Any]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _problem(call: Call, fault: Fault) -> GpuProblem:
    what = _what(call)
    match fault.code:
        case "CUDA_ERROR_NOT_READY":
            return GpuBusy(f"{what} was not granted in its time: the GPU still works for it")
        case "CUDA_ERROR_NOT_INITIALIZED":
            return NotCuda(f"{what}: the process does not use CUDA")
        case "CUDA_ERROR_OPERATING_SYSTEM":
            return ProcessGone(f"{what}: the driver does not reach the process, it may have ended")
        case "":
            return GpuUnavailable(f"{what} failed in the helper process: {fault.message}")
    return GpuFailed(f"{what} failed: the driver answered {fault.code}", code=fault.code)


def _what(call: Call) -> str:
    name = type(call).__name__
    pid = getattr(call, "pid", None)
    return f"{name} of process {pid}" if pid is not None else name


def _hung(call: Call, timeout: float) -> str:
    return f"{_what(call)} did not come back within {timeout:g} s; its helper process was killed"


def _meaning(status: int | None) -> str:
    if status == helper_process.EXIT_LOCKED:
        return " (an earlier helper is stuck in the driver, or another worker uses its folder)"
    return ""
