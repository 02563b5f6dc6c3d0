"""Commands that are run to their end, with a time-out, and whose failure says what they said."""

import asyncio
import contextlib
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping
from os import PathLike

TIMEOUT = 60.0

Word = str | PathLike[str]


class CommandFailed(Exception):
    """A command ended with an error; `stderr` is what it said."""

    def __init__(self, command: str, code: int, stderr: str) -> None:
        super().__init__(f"{command} ended with {code}: {stderr.strip()}")
        self.code = code
        self.stderr = stderr


async def run(
    *command: Word,
    given: str = "",
    env: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> str:
    """What the command writes to its standard output."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE if given else DEVNULL, stdout=PIPE, stderr=PIPE, env=env
    )
    try:
        async with asyncio.timeout(timeout):
            stdout, stderr = await process.communicate(given.encode() or None)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended in between
                process.kill()
            await process.wait()
    if process.returncode:
        words = " ".join(map(str, command))
        raise CommandFailed(words, process.returncode, stderr.decode(errors="replace"))
    return stdout.decode(errors="replace")


async def succeeds(*command: Word) -> bool:
    try:
        await run(*command)
    except CommandFailed:
        return False
    return True
