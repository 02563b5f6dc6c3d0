"""Going on after somebody wiped a stream or a bucket."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from kybernate.bus.port import Bus, TopologyMissing

T = TypeVar("T")


async def repaired(bus: Bus, act: Callable[[], Awaitable[T]]) -> T:
    """What `act` gives; when a stream or a bucket is gone, it is made again and `act` repeated."""
    try:
        return await act()
    except TopologyMissing:
        await bus.ensure_topology()
        return await act()
