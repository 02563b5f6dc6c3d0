"""The two worlds that the GPU contract holds in: simulated GPUs, and a real NVIDIA GPU."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from node_worker.gpu.client import HelperGpu, open_gpu
from node_worker.gpu.helper import HelperSettings
from tests.support import simulated_gpu
from tests.support.simulated_gpu import MARK, SimulatedGpus

W = TypeVar("W", bound="SimulatedWorld")
ROOT = Path(__file__).parents[2]
MIB = 1 << 20
PATIENCE = 120.0


async def until(true: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - what is awaited happens in other processes
            await asyncio.sleep(0.01)
    assert true(), what


class Workload:
    """A process that uses a GPU: counts, and tells a digest of its GPU memory."""

    def __init__(self, process: asyncio.subprocess.Process, home: Path) -> None:
        self.process = process
        self.home = home

    @property
    def pid(self) -> int:
        return self.process.pid

    def progress(self) -> tuple[int, str]:
        """How far it has counted, and the digest; (0, "") before its first count."""
        path = self.home / "progress"
        if not path.exists():
            return 0, ""
        loop, _, digest = path.read_text().strip().removeprefix("Loop ").partition(": ")
        return int(loop), digest

    async def counts_on(self) -> None:
        before, _ = self.progress()
        await until(lambda: self.progress()[0] > before, "it counts")

    async def keep_busy(self, seconds: float) -> None:
        """Let one kernel run for about so long."""
        (self.home / "busy").write_text(str(time.time() + seconds))


class CudaWorkload(Workload):
    async def keep_busy(self, seconds: float) -> None:
        started = self.home / "kernel"
        (self.home / "seconds").write_text(str(seconds))
        self.process.send_signal(signal.SIGUSR1)
        await until(started.exists, "the kernel is launched")


class SimulatedWorld:
    """A folder of simulated GPUs, and workloads that are real processes."""

    memory = 4 * MIB
    gpus: SimulatedGpus

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.AsyncExitStack()
        self.gpus = SimulatedGpus(folder / "gpus")
        self.gpus.show([simulated_gpu.gpu(0), simulated_gpu.gpu(1)])
        self.gpu = HelperGpu(self.settings())

    def settings(self, call_timeout: float = 20.0, lock_grace: float = 5.0) -> HelperSettings:
        return HelperSettings(
            state=self._folder,
            driver=self.gpus.module,
            argument=str(self.gpus.folder),
            call_timeout=call_timeout,
            lock_grace=lock_grace,
        )

    async def workload(self, *gpus: int) -> Workload:
        memory = [f"{simulated_gpu.gpu(index).uuid}={self.memory}" for index in gpus or (0,)]
        process = await self._start(
            *(sys.executable, "-m", simulated_gpu.__name__, str(self._folder), *memory)
        )
        work = Workload(process, self._folder / str(process.pid))
        await until(lambda: work.progress()[0], "the workload counts")
        return work

    async def process_without_cuda(self) -> int:
        return (await self._start("sleep", "600")).pid

    async def _start(self, *command: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=os.environ | {MARK: str(self._folder)}
        )
        self._stack.push_async_callback(end, process)
        return process


class RealWorld(SimulatedWorld):
    """The first NVIDIA GPU of this machine."""

    memory = 256 * MIB

    def settings(self, call_timeout: float = 60.0, lock_grace: float = 10.0) -> HelperSettings:
        return HelperSettings(state=self._folder, call_timeout=call_timeout, lock_grace=lock_grace)

    async def workload(self, *_gpus: int) -> Workload:
        return await self.run("cuda_workload.py", str(self.memory))

    async def run(self, script: str, *arguments: str) -> Workload:
        """Start one of the scripts beside this file; it gets a folder of its own to report in."""
        home = Path(tempfile.mkdtemp(dir=self._folder))
        path = Path(__file__).with_name(script)
        process = await self._start(sys.executable, str(path), str(home), *arguments)
        work = CudaWorkload(process, home)
        await until(lambda: work.progress()[0] or process.returncode is not None, "it counts")
        assert process.returncode is None, f"{script} {arguments} ended with {process.returncode}"
        return work


async def end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # a test may have ended it
        process.kill()
    await process.wait()


@contextlib.asynccontextmanager
async def opened(kind: type[W], folder: Path) -> AsyncIterator[W]:
    """The world with its helper; all its processes end with it."""
    world = kind(folder)
    async with world._stack, open_gpu(world.settings()) as world.gpu:
        yield world
