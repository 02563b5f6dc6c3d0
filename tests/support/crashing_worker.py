"""Workers that are killed at a chosen point, one after the other, quickly.

`python -m tests.support.crashing_worker NODE STATE CONTAINERD NATS DRIVER ARGUMENT` imports all
once and then forks a worker for every line that it reads: where the worker shall fail, and where it
shall kill itself. For each it prints the pid, then how it ended. It ends at the end of its input,
and so does the worker that runs then.
DRIVER and ARGUMENT are those of the GPUs; an empty DRIVER stands for a node without any.
"""

import asyncio
import contextlib
import faulthandler
import os
import select
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

import msgspec

from kybernate import tasks
from kybernate.bus import BusSettings
from kybernate.bus.nats import connect
from node_worker import alone, app
from node_worker.containerd import client as containerd
from node_worker.executor import Point
from node_worker.gpu.client import open_gpu
from node_worker.gpu.helper import HelperSettings
from node_worker.gpu.port import Gpu
from node_worker.settings import WorkerSettings
from tests.support.fake_gpu import FakeGpu

ROOT = Path(__file__).parents[2]
END_SECONDS = 60.0
LAST_LINES = 200
KILLED = -signal.SIGKILL


class Trouble(Exception):
    """The failure that sends a job back."""


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """At which (step, point) a worker fails, and at which it dies; empty: nowhere."""

    fails: tuple[str, str] = ("", "")
    dies: tuple[str, str] = ("", "")

    def observe(self, step: str, point: Point) -> None:
        if (step, point) == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if (step, point) == self.fails:
            raise Trouble(f"{step}: {point}")


async def _work(settings: WorkerSettings, fate: Fate) -> None:
    async with (
        connect(settings.bus, name="worker") as bus,
        containerd.connect(settings.containerd) as runtime,
    ):
        with alone.alone_in(settings.lock):
            async with (
                _gpus(settings) as gpu,
                app.working(settings, bus, runtime, gpu, observer=fate.observe),
            ):
                await asyncio.Event().wait()


def _gpus(settings: WorkerSettings) -> AbstractAsyncContextManager[Gpu]:
    if not settings.gpu_driver:
        return nullcontext(FakeGpu())
    return open_gpu(
        HelperSettings(
            state=settings.state, driver=settings.gpu_driver, argument=settings.gpu_argument
        )
    )


def _fork(settings: WorkerSettings, fate: Fate) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    asyncio.run(_until_signalled(settings, fate))
    os._exit(0)


async def _until_signalled(settings: WorkerSettings, fate: Fate) -> None:
    """SIGUSR1 makes it write to its log where each task and thread stands, also when it hangs."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _tell_tasks)
    faulthandler.register(signal.SIGUSR1, chain=True)
    await tasks.run_until_signalled(_work(settings, fate))


def _tell_tasks() -> None:
    for task in asyncio.all_tasks():
        task.print_stack()


def main() -> None:
    node, state, socket, url, driver, argument = sys.argv[1:]
    alone.LISTEN_SECONDS = 0.01  # type: ignore[misc] # the name is nobody else's, and time is short
    settings = WorkerSettings(
        node=node,
        state=Path(state),
        containerd=Path(socket),
        bus=BusSettings(servers=(url,), ack_wait=5.0),
        gpu_driver=driver,
        gpu_argument=argument,
        retire_seconds=0.5,
    )
    for line in sys.stdin:
        pid = _fork(settings, msgspec.json.decode(line, type=Fate))
        print(pid, flush=True)  # noqa: T201 - the answer
        print(_end_of(pid), flush=True)  # noqa: T201


def _end_of(worker: int) -> int:
    """How it has ended. While one runs nothing is asked for, so input means its end."""
    ending = os.pidfd_open(worker)
    if ending not in select.select([ending, sys.stdin], [], [])[0]:
        os.kill(worker, signal.SIGKILL)
    os.close(ending)
    return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])


class CrashingWorkers:
    """The tests' hand on that process."""

    def __init__(self, process: Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._pid = 0

    async def start(self, fate: Fate) -> None:
        """The next worker; the one before has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(fate) + b"\n")
        self._pid = await self._number()

    async def killed(self) -> None:
        """The worker has ended by SIGKILL."""
        await self._ended(KILLED)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End it as an operator does."""
        os.kill(self._pid, signal.SIGTERM)
        await self._ended(0)

    async def where_it_stands(self) -> str:
        """What the running worker does at this moment, behind what it has logged."""
        if self._pid:
            os.kill(self._pid, signal.SIGUSR1)
            await asyncio.sleep(1)  # it writes at once, if it can
        return self._last_words()

    async def _ended(self, how: int) -> None:
        """It has ended like this: with that exit status, or by that signal (below 0)."""
        late = ""
        ending = asyncio.ensure_future(self._number())
        if not (await asyncio.wait({ending}, timeout=END_SECONDS))[0]:
            late = await self.where_it_stands()
            self.kill()
        status = await ending
        self._pid = 0
        assert not late, f"it did not end:\n{late}"
        assert status == how, self._last_words()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LAST_LINES:])

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(END_SECONDS):
            await self._process.wait()

    async def _number(self) -> int:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the process that forks workers has ended; see its log"
        return int(line)


@contextlib.asynccontextmanager
async def crashing_workers(
    arguments: Sequence[str | Path], log: Path
) -> AsyncIterator[CrashingWorkers]:
    """With the arguments of `python -m tests.support.crashing_worker`."""
    command = ("-m", "tests.support.crashing_worker", *map(str, arguments))
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=PIPE, stdout=PIPE, stderr=output, cwd=ROOT
        )
    workers = CrashingWorkers(process, log)
    try:
        yield workers
    finally:
        await workers.close()


if __name__ == "__main__":
    main()
