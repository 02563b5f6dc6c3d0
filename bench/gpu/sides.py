"""The three sides: each takes the container once round, and tells the seconds of its steps."""

import asyncio
import time
from collections.abc import Awaitable, Iterable
from typing import Protocol, TypeVar

from bench.bare import Bare
from bench.gpu import leases
from bench.through_kybernate import ThroughKybernate, Went
from kybernate.embedded.workload import NAMESPACE
from node_worker.containerd.calls import Caller
from node_worker.containerd.port import DumpOptions, Runtime
from node_worker.gpu.port import Driver

T = TypeVar("T")
Seconds = dict[str, float]

DRIVER_CHECKPOINT = "driver checkpoint"
DUMP = "dump"
SEAL = "seal"
RESTORE = "restore"
DRIVER_RESTORE = "driver restore"
TOTAL = "total"
STEPS = (DRIVER_CHECKPOINT, DUMP, SEAL, RESTORE, DRIVER_RESTORE, TOTAL)

LOCK_SECONDS = 60.0
DUMP_SECONDS = 1800.0


class Side(Protocol):
    name: str

    async def round(self) -> Seconds:
        """Once round; the container runs afterwards."""

    async def clean(self) -> None:
        """Remove what the round has left on the disk."""


class Clock:
    """Seconds by step; a step that is timed twice counts twice."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}

    async def time(self, step: str, work: Awaitable[T]) -> T:
        began = time.monotonic()
        try:
            return await work
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - began


class DriverCalls:
    """The driver's calls for one process, from this process: no helper between."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def away(self, pid: int) -> None:
        await asyncio.to_thread(self._driver.lock, pid, LOCK_SECONDS)
        await asyncio.to_thread(self._driver.checkpoint, pid)

    async def back(self, pid: int) -> None:
        await asyncio.to_thread(self._driver.restore, pid, None)
        await asyncio.to_thread(self._driver.unlock, pid)


class BareSide:
    name = "bare"

    def __init__(self, runtime: Runtime, driver: DriverCalls, bare: Bare, id: str) -> None:
        self._runtime = runtime
        self._driver = driver
        self._bare = bare
        self._id = id

    async def round(self) -> Seconds:
        clock = Clock()
        pid = (await self._runtime.task(NAMESPACE, self._id)).pid
        await clock.time(TOTAL, self._round(clock, pid))
        return clock.seconds

    async def _round(self, clock: Clock, pid: int) -> None:
        await clock.time(DRIVER_CHECKPOINT, self._driver.away(pid))
        await clock.time(DUMP, self._bare.dump())
        await clock.time(SEAL, self._bare.seal())
        await self._runtime.delete_task(NAMESPACE, self._id)
        pid = await clock.time(RESTORE, self._bare.restore())
        await clock.time(DRIVER_RESTORE, self._driver.back(pid))

    async def clean(self) -> None:
        await self._bare.clean()


class ContentStoreSide:
    """Down only: the container runs on, and nothing is restored from the content store."""

    name = "content store"

    def __init__(self, runtime: Runtime, driver: DriverCalls, caller: Caller, id: str) -> None:
        self._runtime = runtime
        self._driver = driver
        self._caller = caller
        self._id = id

    async def round(self) -> Seconds:
        clock = Clock()
        pid = (await self._runtime.task(NAMESPACE, self._id)).pid
        options = DumpOptions(image_path="", work_path="", open_tcp=True, file_locks=True)
        await clock.time(DRIVER_CHECKPOINT, self._driver.away(pid))
        dumped = self._runtime.checkpoint(NAMESPACE, self._id, options, timeout=DUMP_SECONDS)
        await clock.time(DUMP, dumped)
        await clock.time(DRIVER_RESTORE, self._driver.back(pid))
        return clock.seconds

    async def clean(self) -> None:
        await leases.collect_garbage(self._caller, NAMESPACE)


class KybernateSide:
    name = "kybernate"

    def __init__(self, ours: ThroughKybernate) -> None:
        self._ours = ours

    async def round(self) -> Seconds:
        down, up = await self._ours.checkpoint(), await self._ours.restore()
        return {
            DRIVER_CHECKPOINT: _sum(down, ("lock", "gpu")),
            DUMP: _sum(down, ("pause", "dump", "rootfs")),
            SEAL: _sum(down, ("hash", "seal")),
            RESTORE: sum(up.steps.values()) - _sum(up, ("gpu",)),
            DRIVER_RESTORE: _sum(up, ("gpu",)),
            TOTAL: down.seconds + up.seconds,
        }

    async def clean(self) -> None:
        await self._ours.clean()


def _sum(went: Went, steps: Iterable[str]) -> float:
    return sum(went.steps[step] for step in steps)
