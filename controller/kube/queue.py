"""Objects that want attention: each is attended to by one task at a time, again when it changed
meanwhile, later when it asks for that, and with growing pauses while that fails.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from controller.kube.client import Taken
from controller.kube.watch import Key
from kybernate.problems import trace_of
from kybernate.tasks import backoff

AT_ONCE = 8
log = logging.getLogger(__name__)

Attend = Callable[[Key], Awaitable[float | None]]
"""Returns after how many seconds the object wants attention again, if at all."""


class Queue:
    def __init__(self, name: str, attend: Attend) -> None:
        self._name = name
        self._attend = attend
        self._waiting: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._busy: set[Key] = set()
        self._changed: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def add(self, key: Key) -> None:
        if key in self._busy:
            self._changed.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._waiting.put_nowait(key)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_ONCE):
                    tasks.create_task(self._work())
        finally:
            for timer in self._timers.values():
                timer.cancel()

    async def _work(self) -> None:
        while True:
            key = await self._waiting.get()
            self._queued.discard(key)
            self._busy.add(key)
            if timer := self._timers.pop(key, None):
                timer.cancel()
            wait = await self._attended(key)
            self._busy.discard(key)
            if key in self._changed:
                self._changed.discard(key)
                self.add(key)
            elif wait is not None:
                self._timers[key] = asyncio.get_running_loop().call_later(wait, self.add, key)

    async def _attended(self, key: Key) -> float | None:
        try:
            wait = await self._attend(key)
        except Exception as error:  # noqa: BLE001 - logged, and tried again
            return self._failed(key, error)
        self._failures.pop(key, None)
        return wait

    def _failed(self, key: Key, error: Exception) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        wait = backoff(failures)
        level = logging.DEBUG if isinstance(error, Taken) else logging.WARNING
        log.log(
            level,
            "%s %s: %s; again in %.1f s",
            self._name,
            "/".join(key),
            error,
            wait,
            exc_info=trace_of(error),
        )
        return wait
