"""One GPU helper process as the worker sees it, from its start to its end.

One task per helper reads its replies and hands each to the call that waits for it.
"""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import msgspec

from node_worker.gpu import helper_process, protocol
from node_worker.gpu.port import CALL_TIMEOUT
from node_worker.gpu.protocol import Call, Reply, Request

CUDA_DRIVER = "node_worker.gpu.driver"
END_SECONDS = 5.0


class HelperSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the helper is started and how long its calls may take."""

    state: Path
    """Folder for its lock file; must exist."""
    driver: str = CUDA_DRIVER
    argument: str = ""
    takeover_timeout: float = 10.0
    """Seconds for an earlier helper of the folder to be gone."""
    call_timeout: float = CALL_TIMEOUT
    lock_grace: float = 10.0
    """Seconds beyond the lock's own time-out after which its call counts as hung."""


class HelperEnded(Exception):
    """The helper went away before it answered."""


class Helper:
    """One helper process, from its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None  # noqa: S101 - both are pipes, see start()
        assert process.stdout is not None  # noqa: S101
        self._process = process
        self._requests = process.stdin
        self._replies = process.stdout
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._last_id = 0
        self.ended = False
        self._reader = asyncio.create_task(self._read(), name=f"gpu helper {process.pid}")

    @classmethod
    async def start(cls, settings: HelperSettings) -> "Helper":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", helper_process.__name__),
            *("--state", str(settings.state)),
            *("--driver", settings.driver, "--argument", settings.argument),
            *("--wait", str(settings.takeover_timeout)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # an interrupt at the terminal is for the worker alone
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        return self._process.returncode

    async def ask(self, call: Call, *, again: bool) -> Reply:
        if self.ended:
            raise HelperEnded
        self._last_id += 1
        request = Request(id=self._last_id, call=call, again=again)
        answer = self._waiting[request.id] = asyncio.get_running_loop().create_future()
        try:
            self._requests.write(protocol.frame(request))
            await self._requests.drain()
            reply: Reply = await answer
        except ConnectionError as error:
            raise HelperEnded from error
        finally:
            self._waiting.pop(request.id, None)
        return reply

    async def kill(self) -> None:
        """End it now; the calls that wait for it hear of that."""
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            self._process.kill()
        await self._gone()

    async def end(self) -> None:
        """Let it end by itself, and kill it where it does not."""
        self._requests.close()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            await self.kill()
        await self._gone()

    async def _gone(self) -> None:
        self._end_waiting()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        # A process inside the kernel may outlive its kill; the next helper waits for its lock.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()

    async def _read(self) -> None:
        try:
            while True:
                head = await self._replies.readexactly(protocol.LENGTH.size)
                body = await self._replies.readexactly(protocol.body_length(head))
                reply = protocol.reply_in(body)
                waiting = self._waiting.get(reply.id)
                if waiting and not waiting.done():
                    waiting.set_result(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            await self._process.wait()
        except protocol.BrokenStream:
            self._process.kill()
        finally:
            self._end_waiting()

    def _end_waiting(self) -> None:
        self.ended = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(HelperEnded())
