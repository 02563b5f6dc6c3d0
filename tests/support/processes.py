"""The program as users run it: services as processes of their own, commands with their output."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import msgspec

PROGRAM = (sys.executable, "-m", "kybernate.cli")
BYTECODE = Path(__file__).parents[2] / ".pytest_cache/bytecode"
START_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


class Service:
    """A running service and its log."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self.log = log

    def messages(self) -> list[str]:
        """What it has logged; lines that are no JSON are left as they are."""
        return [_message(line) for line in self.log.read_text().splitlines()]

    async def said(self, wanted: Callable[[str], bool]) -> str:
        """The first message that is as wanted."""
        async with asyncio.timeout(START_TIMEOUT):
            while True:
                for message in self.messages():
                    if wanted(message):
                        return message
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.02)

    async def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal and wait for its exit code."""
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            self.process.send_signal(how)
        async with asyncio.timeout(STOP_TIMEOUT):
            return await self.process.wait()


def environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """This process's own, and a place for bytecode, also where none is to be written beside the
    sources: compiling everything anew would be most of what a short command does.
    """
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**own, "PYTHONPYCACHEPREFIX": str(BYTECODE), **(more or {})}


def _message(line: str) -> str:
    try:
        return str(json.loads(line)["message"])
    except (ValueError, TypeError, LookupError):
        return line


@contextlib.asynccontextmanager
async def service(
    log: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[Service]:
    """`kybernate ARGUMENTS` in the background; killed at the end if it still runs."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            *arguments,
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(env),
            start_new_session=True,
        )
    running = Service(process, log)
    try:
        yield running
    finally:
        if process.returncode is None:
            await running.end(signal.SIGKILL)


async def kybernate(*arguments: str, env: Mapping[str, str] | None = None) -> Output:
    """Run one command to its end."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *arguments,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        env=environment(env),
    )
    try:
        stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Output(code=process.returncode or 0, stdout=stdout.decode(), stderr=stderr.decode())


async def url_of(controller: Service) -> str:
    """Where a controller with `--listen …:0` is."""
    begin = "serving the REST API at "
    return (await controller.said(lambda said: said.startswith(begin))).removeprefix(begin)
