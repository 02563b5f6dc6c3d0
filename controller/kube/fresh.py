"""One read for all who ask at the same time, and never an older one than they asked for."""

import asyncio
from collections.abc import Awaitable, Callable


class Fresh:
    def __init__(self, read: Callable[[], Awaitable[object]]) -> None:
        self._read = read
        self._next: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def read(self) -> None:
        """Returns after a read that began after this call, or raises what it raised."""
        if self._next is None:
            self._next = asyncio.create_task(self._begin())
        await asyncio.shield(self._next)

    async def _begin(self) -> None:
        async with self._one_at_a_time:
            self._next = None  # who asks from now on gets the next one
            await self._read()
