"""Where the OCI runtime meets the worker: a FIFO of requests, and one per answer.

Everything lies in one folder of root alone. `worker.pid` tells the runtime that somebody answers:
it names this process and when it started, so that a dead worker's number in somebody else's hands
deceives nobody. The worker holds the FIFO open in both directions, so it never ends. A worker that
comes after a dead one clears the answers away that nobody gives any more: their askers have seen
the death themselves.
"""

import asyncio
import contextlib
import errno
import logging
import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from kybernate.problems import trace_of
from node_worker.faults import failure_of
from node_worker.pods import requests
from node_worker.pods.requests import (
    GoneTold,
    Malformed,
    PodRestores,
    Request,
    RestoreAsked,
    RunningAsked,
)
from schemas.failures import Failure

log = logging.getLogger(__name__)

CHUNK: Final = 1 << 16
NOBODY_READS: Final = {errno.ENOENT, errno.ENXIO, errno.EPIPE}


@contextlib.asynccontextmanager
async def doorway(folder: Path, restores: PodRestores) -> AsyncIterator[None]:
    """Answer what the OCI runtime asks in that folder; at the end, who still waits is told so."""
    _prepare(folder)
    clerk = Clerk(folder, restores)
    with _fifo(folder / "requests") as fifo:
        reading = asyncio.create_task(clerk.read(fifo), name="pod requests")
        _sign(folder / "worker.pid")
        try:
            yield
        finally:
            (folder / "worker.pid").unlink(missing_ok=True)
            await clerk.close(reading)


class Clerk:
    """Takes requests, has them done, answers."""

    def __init__(self, folder: Path, restores: PodRestores) -> None:
        self._answers = folder / "answers"
        self._restores = restores
        self._doing = set[asyncio.Task[None]]()

    async def read(self, fifo: int) -> None:
        """Start a task for every request, for ever."""
        lines = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        loop.add_reader(fifo, lambda: lines.feed_data(os.read(fifo, CHUNK)))
        try:
            while True:
                self._take(await _line(lines))
        finally:
            loop.remove_reader(fifo)

    async def close(self, reading: asyncio.Task[None]) -> None:
        open_tasks = [reading, *self._doing]
        for task in open_tasks:
            task.cancel()
        await asyncio.gather(*open_tasks, return_exceptions=True)

    def _take(self, line: bytes) -> None:
        try:
            request = requests.parse(line)
        except Malformed as error:
            log.warning("a line in the requests of the OCI runtime is dropped: %s", error)
            return
        name = f"pod request of {request.container}"
        task = asyncio.create_task(self._act_on(request), name=name)
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _act_on(self, request: Request) -> None:
        match request:
            case RestoreAsked():
                await self._restore(request)
            case RunningAsked():
                await self._running(request)
            case GoneTold():
                await self._gone(request)

    async def _restore(self, request: RestoreAsked) -> None:
        try:
            answer = requests.restored(await self._restores.restore(request))
        except asyncio.CancelledError:
            self._answer(request, requests.failed(STOPPED))
            raise
        except Exception as error:  # noqa: BLE001 - told to the one who asked
            answer = _failure(request, error)
        if not self._answer(request, answer):
            log.warning("nobody waits for the restore of %s any more", request.container)
            await self._gone(GoneTold(container=request.container))

    async def _running(self, request: RunningAsked) -> None:
        try:
            await self._restores.running(request)
            answer = requests.runs()
        except asyncio.CancelledError:
            self._answer(request, requests.failed(STOPPED))
            raise
        except Exception as error:  # noqa: BLE001 - told to the one who asked
            answer = _failure(request, error)
        self._answer(request, answer)

    async def _gone(self, request: GoneTold) -> None:
        try:
            await self._restores.gone(request)
        except Exception:
            log.exception("clearing up after container %s failed", request.container)

    def _answer(self, request: RestoreAsked | RunningAsked, line: bytes) -> bool:
        """Whether somebody was there to read it. Never waits: the line fits into the FIFO."""
        path = self._answers / requests.answer_name(request)
        try:
            answer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in NOBODY_READS:
                return False
            raise
        try:
            os.write(answer, line)
        finally:
            os.close(answer)
        return True


STOPPED: Final = "the worker of this node is being stopped; the container is tried again"


async def _line(lines: asyncio.StreamReader) -> bytes:
    """The next line; one that is far too long is none."""
    try:
        return (await lines.readuntil()).rstrip(b"\n")
    except asyncio.LimitOverrunError as error:
        await lines.readexactly(error.consumed)
        return b""


def _failure(request: RestoreAsked | RunningAsked, error: Exception) -> bytes:
    failure = failure_of(error)
    trace = trace_of(error)
    log.warning(
        "container %s cannot resume: %s", request.container, failure.message, exc_info=trace
    )
    return requests.failed(in_words(failure))


def in_words(failure: Failure) -> str:
    """A failure in one line: what is wrong, its reason, what to do."""
    return f"{failure.message} ({failure.reason}). {failure.advice}".strip()


def _prepare(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / "restored").mkdir(mode=0o700, exist_ok=True)
    answers = folder / "answers"
    answers.mkdir(mode=0o700, exist_ok=True)
    for left in answers.iterdir():
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def _fifo(path: Path) -> Iterator[int]:
    if not path.is_fifo():
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
    fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not stat.S_ISFIFO(os.fstat(fifo).st_mode):
            raise FileExistsError(f"{path} is no FIFO; remove it")
        yield fifo
    finally:
        os.close(fifo)


def _sign(path: Path) -> None:
    """Say who answers, in one piece."""
    pid = os.getpid()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    draft = path.with_suffix(".new")
    draft.write_text(f"{pid} {fields[19]}\n")
    draft.rename(path)
