"""Who waits for changes of which action in this process.

A watcher is told the newest record only: a slow one skips what lies between.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from schemas.actions import Action


class Watch:
    """The newest record of one action that its watcher has not seen yet."""

    def __init__(self) -> None:
        self._newest: Action | None = None
        self._told = asyncio.Event()

    def tell(self, action: Action) -> None:
        self._newest = action
        self._told.set()

    def wake(self) -> None:
        self._told.set()

    async def next(self, seconds: float) -> Action | None:
        """The next record; None when there was none for so long."""
        with suppress(TimeoutError):  # silence is an answer
            async with asyncio.timeout(seconds):
                await self._told.wait()
        self._told.clear()
        newest, self._newest = self._newest, None
        return newest


class Watchers:
    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self.closing = False

    def wanted(self, action: str) -> bool:
        return action in self._watches

    def tell(self, action: Action) -> None:
        for watch in self._watches.get(action.id, ()):
            watch.tell(action)

    def close(self) -> None:
        """Send everybody away: they find another controller."""
        self.closing = True
        for watches in self._watches.values():
            for watch in watches:
                watch.wake()

    @contextmanager
    def watch(self, action: str) -> Iterator[Watch]:
        watch = Watch()
        self._watches.setdefault(action, set()).add(watch)
        try:
            yield watch
        finally:
            self._watches[action].discard(watch)
            if not self._watches[action]:
                del self._watches[action]
