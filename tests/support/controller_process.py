"""Controllers in processes of their own, to be killed."""

import asyncio
import json
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.support.controllers import until

_SERVING = "serving the REST API at "


class ControllerProcess:
    def __init__(self, process: Process, log: Path) -> None:
        self._process = process
        self._log = log
        self.url = ""

    async def listening(self) -> None:
        async def told() -> str:
            if self._process.returncode is not None:
                raise RuntimeError(f"the controller ended: {self._log.read_text()}")
            messages = [json.loads(line)["message"] for line in self._lines()]
            return next((text for text in messages if text.startswith(_SERVING)), "")

        self.url = (await until(told, bool)).removeprefix(_SERVING)

    async def kill(self) -> None:
        """SIGKILL: no word to anybody."""
        with suppress(ProcessLookupError):  # it was killed before
            self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        self._process.terminate()
        return await self._process.wait()

    def _lines(self) -> list[str]:
        return [line for line in self._log.read_text().splitlines() if line.endswith("}")]


@asynccontextmanager
async def controller_processes(
    nats: str, folder: Path, count: int
) -> AsyncIterator[list[ControllerProcess]]:
    """So many controllers, started side by side."""
    started: list[ControllerProcess] = []
    try:
        for _ in range(count):
            started.append(await _start(nats, folder / f"controller-{len(started)}.log"))
        await asyncio.gather(*(one.listening() for one in started))
        yield started
    finally:
        for one in started:
            await one.kill()


async def _start(nats: str, log: Path) -> ControllerProcess:
    arguments = ["controller", "--listen", "127.0.0.1:0", "--nats", nats, "--log-level", "info"]
    with log.open("wb") as target:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from kybernate.cli import main; main()",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=target,
            stderr=target,
        )
    return ControllerProcess(process, log)
