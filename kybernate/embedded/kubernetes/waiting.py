"""Waiting for what only looking again can tell."""

import asyncio
from collections.abc import Awaitable, Callable

POLL_SECONDS = 0.2


async def until(
    holds: Callable[[], Awaitable[bool]], *, timeout: float, every: float = POLL_SECONDS
) -> None:
    """Return when the condition holds; TimeoutError when it does not in time."""
    async with asyncio.timeout(timeout):
        while not await holds():  # noqa: ASYNC110 — other processes set no event of ours
            await asyncio.sleep(every)
