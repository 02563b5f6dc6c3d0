"""When calls to containerd were under way: what they take is not Kybernate's own time."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from node_worker.containerd.calls import Caller

Interval = tuple[float, float]
"""Seconds since the epoch, begin and end."""


@asynccontextmanager
async def recorded_calls() -> AsyncIterator[list[Interval]]:
    """The intervals of all calls that this process makes to containerd inside the block."""
    intervals: list[Interval] = []
    original = Caller.__call__

    async def timed(self: Caller, *given: Any, **named: Any) -> Any:
        began = time.time()
        try:
            return await original(self, *given, **named)
        finally:
            intervals.append((began, time.time()))

    Caller.__call__ = timed  # type: ignore[method-assign]
    try:
        yield intervals
    finally:
        Caller.__call__ = original  # type: ignore[method-assign]


def covered(intervals: list[Interval], window: Interval) -> float:
    """How much of the window at least one of the intervals covers."""
    total, reached = 0.0, window[0]
    for began, ended in sorted(intervals):
        until = min(ended, window[1])
        total += max(0.0, until - max(began, reached))
        reached = max(reached, until)
    return total
