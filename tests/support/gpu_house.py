"""A house whose workers die, and whose containers have memory on a GPU."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kybernate.embedded.counting import Counter, counted, problem_with
from kybernate.embedded.workload import NAMESPACE, Running, end_task
from node_worker.containerd.port import TaskStatus
from node_worker.gpu.client import HelperGpu, open_gpu
from node_worker.gpu.helper import HelperSettings
from tests.support.crash_house import House, crash_house
from tests.support.gpu_kinds import SimulatedKind

PATIENCE = 300.0
"""Seconds until it counts; PyTorch takes some to load."""


class Counting:
    """A container that counts, and where it stood."""

    def __init__(self, running: Running) -> None:
        self.name = running.id
        self._running = running
        self._stood = counted(())
        self._since = 0

    def stand(self) -> None:
        """It has to go on from here, with the same data."""
        lines = self._running.lines()
        self._stood, self._since = counted(lines), len(lines)

    def skip(self) -> None:
        """What it has written up to now is forgotten: it comes back from where it stood before."""
        self._since = len(self._running.lines())

    async def goes_on(self) -> None:
        told = len(counted(self._running.lines()[self._since :]).tokens)
        lines = await self._running.wait_for(
            lambda lines: len(counted(lines[self._since :]).tokens) > told + 1, timeout=PATIENCE
        )
        problem = problem_with(self._stood, counted(lines[self._since :]))
        assert not problem, f"{problem}: {self._stood}, then {lines[self._since :]}"


class GpuHouse:
    """The house, and the driver's own word on what runs in it."""

    def __init__(self, house: House, kind: SimulatedKind, gpu: HelperGpu) -> None:
        self.house = house
        self.kind = kind
        self.gpu = gpu

    async def counting(self, name: str, counter: Counter | None = None) -> Counting:
        """A new container of that name that counts, on the GPU if nothing else is said."""
        if (there := self.house.counters.pop(name, None)) is not None:
            await there.remove()
            there.log.unlink()
        counter = counter or self.kind.counter()
        running = await self.house.workloads.start_container(
            name, counter.workload, python=counter.python
        )
        self.house.counters[name] = running
        await running.wait_for(lambda lines: len(counted(lines).tokens) > 1, timeout=PATIENCE)
        counting = Counting(running)
        counting.stand()
        return counting

    async def pid(self, name: str) -> int:
        return (await self.house.runtime.task(NAMESPACE, name)).pid

    async def in_use(self) -> int:
        """Bytes of GPU memory."""
        there = [name for name in self.house.counters if await self.house.status(name)]
        return self.kind.in_use([await self.pid(name) for name in there])

    async def kill(self, counting: Counting) -> None:
        await end_task(self.house.runtime, counting.name)
        counting.skip()

    async def runs(self, counting: Counting) -> None:
        """It counts on from where it stood."""
        assert await self.house.status(counting.name) is TaskStatus.RUNNING
        await counting.goes_on()


@asynccontextmanager
async def gpu_house(kind: SimulatedKind, folder: Path) -> AsyncIterator[GpuHouse]:
    gpus = kind.gpus
    settings = HelperSettings(state=folder, driver=gpus.driver, argument=gpus.argument)
    async with crash_house(gpus) as house, open_gpu(settings) as gpu:
        yield GpuHouse(house, kind, gpu)
