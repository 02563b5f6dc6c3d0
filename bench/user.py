"""A user's program, a process of its own as users' are: asks over REST and watches to the end.

It reads requests, a line each, and answers each with the action as it ended and with the time
from the request to the end that it saw.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from bench.call_clock import Interval
from kybernate.client import client
from schemas.actions import Action
from schemas.base import Record, decode, encode
from schemas.requests import Request

LINE_BYTES = 1024 * 1024
END_SECONDS = 10.0


class Asked(Record, frozen=True, kw_only=True):
    action: Action
    window: Interval


class User:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, request: Request) -> Asked:
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("the process is asked through pipes")
        self._process.stdin.write(encode(request) + b"\n")
        if not (line := await self._process.stdout.readline()):
            raise ConnectionError("the user's program has ended; it says why on standard error")
        return decode(line, Asked)


@asynccontextmanager
async def user_of(url: str) -> AsyncIterator[User]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, url, stdin=pipe, stdout=pipe, limit=LINE_BYTES
    )
    try:
        yield User(process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await asyncio.wait_for(process.wait(), END_SECONDS)


async def answer_all(url: str) -> None:
    async with client([url]) as api:
        while line := await asyncio.to_thread(sys.stdin.buffer.readline):
            request = msgspec.json.decode(line, type=Request)
            began = time.time()
            action = await api.ended((await api.request(request)).id)
            asked = Asked(action=action, window=(began, time.time()))
            sys.stdout.buffer.write(encode(asked) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(answer_all(sys.argv[1]))
