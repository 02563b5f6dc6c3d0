"""Controllers in this process, on whatever bus a test brings."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from controller.app import serving
from controller.machine import Rules
from controller.settings import ControllerSettings
from kybernate.bus.port import Bus
from kybernate.client import Client, client
from schemas.names import NODES_BUCKET, node_key
from schemas.nodes import Inventory

T = TypeVar("T")

IMPATIENT = Rules(first_pause_seconds=0.05, note_seconds=0.1, adopt_seconds=0.4, quiet_seconds=0.5)
"""Rules by which a test need not wait long."""
GENEROUS_SECONDS = 100.0


@asynccontextmanager
async def controller(
    bus: Bus, *, rules: Rules = IMPATIENT, tokens: tuple[str, ...] = ()
) -> AsyncIterator[str]:
    """The URL of a controller that serves while the block runs."""
    settings = ControllerSettings(listen="127.0.0.1:0", tokens=tokens)
    async with serving(settings, bus, rules=rules) as url:
        yield url


@asynccontextmanager
async def controlled(bus: Bus, *, rules: Rules = IMPATIENT) -> AsyncIterator[Client]:
    """A client of a controller of its own."""
    async with controller(bus, rules=rules) as url, client([url]) as asking:
        yield asking


async def until(
    ask: Callable[[], Awaitable[T]], fits: Callable[[T], bool], *, every: float = 0.02
) -> T:
    """What `ask` gives once it fits; TimeoutError with the last answer if it never does."""
    end = time.monotonic() + GENEROUS_SECONDS
    while not fits(answer := await ask()):
        if time.monotonic() > end:
            raise TimeoutError(f"still {answer!r}")
        await asyncio.sleep(every)
    return answer


async def tell_inventory(bus: Bus, *inventories: Inventory) -> None:
    table = bus.table(NODES_BUCKET, Inventory)
    for inventory in inventories:
        await table.put(node_key(inventory.node), inventory)
