"""Does what nobody came to do: due work, deadlines, and healing what somebody wiped.

Every controller sweeps, at its own pace and jittered. What two of them do is done once: writes are
compare-and-set and jobs carry a dedupe id.
"""

import asyncio
import time
from typing import Final

from controller.catalogue import Catalogue
from controller.engine import Engine
from controller.nodes import Nodes
from controller.records import Records
from kybernate.bus.port import Bus
from kybernate.tasks import for_ever, jittered

DUE_SECONDS: Final = 0.5
NODES_SECONDS: Final = 2.0
REREAD_SECONDS: Final = 2.0
REREAD_SHARE: Final = 20.0
"""Reading everything may take one part in so many of the time: the longer it takes, the rarer."""


class Sweep:
    def __init__(
        self, bus: Bus, engine: Engine, records: Records, catalogue: Catalogue, nodes: Nodes
    ) -> None:
        self._bus = bus
        self._engine = engine
        self._records = records
        self._catalogue = catalogue
        self._nodes = nodes

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for act, name, pause in (
                (self._engine.do_what_is_due, "doing what is due", DUE_SECONDS),
                (self._nodes.refresh, "reading the nodes", NODES_SECONDS),
                (self._records.follow_changes, "following changes", DUE_SECONDS),
                (self.heal, "reading and healing everything", 0.0),
            ):
                tasks.create_task(for_ever(act, name=name, pause=pause, longest=5.0))

    async def heal(self) -> None:
        started = time.monotonic()
        await self._bus.ensure_topology()
        await self._records.reread()
        await self._catalogue.heal()
        took = time.monotonic() - started
        await asyncio.sleep(jittered(max(REREAD_SECONDS, took * REREAD_SHARE)))
