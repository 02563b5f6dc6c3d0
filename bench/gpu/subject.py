"""What is measured: a container that holds GPU memory, on real or simulated GPUs."""

import importlib
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from kybernate.embedded.counting import Counted, Counter, counted, gpu_counter, problem_with
from kybernate.embedded.workload import NAMESPACE, Running
from node_worker.containerd.port import Runtime
from node_worker.gpu.helper import CUDA_DRIVER
from node_worker.gpu.port import Driver
from tests.support import simulated_gpu
from tests.support.simulated_container import simulated_counter

GIB = 1 << 30
START_SECONDS = 300.0
"""For the libraries to be loaded and the memory to be filled, generously."""
DRIVERS = {"cuda": CUDA_DRIVER, "simulated": simulated_gpu.__name__}


class DataChanged(Exception):
    """The process that came back is not the one that went."""


class NoGpu(Exception):
    """There is nothing to measure."""


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """Which driver is called, and with what argument."""

    name: str
    argument: str = ""

    @property
    def module(self) -> str:
        return DRIVERS[self.name]

    def open(self) -> Driver:
        """The driver, loaded: that must not fall into a measurement."""
        driver: Driver = importlib.import_module(self.module).open_driver(self.argument)
        if why := driver.absence():
            raise NoGpu(f"{why}; --driver simulated shows the way without one")
        return driver

    def counter(self, gib: float) -> Counter:
        """A container that holds so much GPU memory."""
        if self.name == "simulated":
            memory = {simulated_gpu.gpu().uuid: int(gib * GIB)}
            return Counter(workload=simulated_counter(memory))
        counter = gpu_counter()
        # Digests are asked for between the rounds: none must run into a measurement.
        args = (counter.workload.args[0], "--interval", "0.05", "--gib", f"{gib:g}", "--gpus", "1")
        return msgspec.structs.replace(
            counter, workload=msgspec.structs.replace(counter.workload, args=args)
        )


def find_gpus(name: str, folder: Path) -> Gpus:
    if name == "simulated":
        plugged = simulated_gpu.SimulatedGpus(folder / "gpus")
        plugged.show([simulated_gpu.gpu()])
        return Gpus(name=name, argument=str(plugged.folder))
    return Gpus(name=name)


class Watched:
    """The container's output: whether it still is the same process with the same data."""

    def __init__(self, runtime: Runtime, running: Running) -> None:
        self._runtime = runtime
        self._running = running
        self._checked = 0

    async def goes_on(self) -> None:
        """Return once it has counted on and told its digest; DataChanged when either is off."""
        await self._until(lambda seen: len(seen.numbers) > self._checked + 1)
        told = len(counted(self._running.lines()).tokens)
        await self._runtime.kill(NAMESPACE, self._running.id, signal.SIGUSR1)
        seen = await self._until(lambda seen: len(seen.tokens) > told)
        first = Counted(numbers=seen.numbers[:1], tokens=seen.tokens[:1])
        if problem := problem_with(first, msgspec.structs.replace(seen, numbers=seen.numbers[1:])):
            raise DataChanged(problem)
        self._checked = len(seen.numbers)

    async def _until(self, reached: Callable[[Counted], bool]) -> Counted:
        lines = await self._running.wait_for(
            lambda lines: reached(counted(lines)), timeout=START_SECONDS
        )
        return counted(lines)
