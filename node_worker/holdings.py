"""Keeps the catalogue true of what this node holds: checkpoints on its disk and in its memory.

What the catalogue lost comes back from here. What it calls ready, and somebody took away by hand,
is missing from then on, until its folder is there again: what is in a folder is verified when it
is used.
"""

import logging
import time
from contextlib import suppress
from typing import Final

import msgspec

from kybernate import tasks
from kybernate.bus import Bus, Conflict, Row, TopologyMissing
from kybernate.store import NoSuchCheckpoint, StoreError, manifest_digest, read_manifest
from node_worker.actors import Means
from node_worker.facts import Sleeper, facts_of
from node_worker.threads import in_thread
from schemas.base import decode
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.manifest import CheckpointFacts
from schemas.names import CHECKPOINTS_BUCKET
from schemas.orders import Place

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS: Final = 60.0


class Holdings:
    def __init__(self, bus: Bus, means: Means) -> None:
        self._bus = bus
        self._means = means
        self._catalogue = bus.table(CHECKPOINTS_BUCKET, CatalogueEntry)

    async def run(self) -> None:
        await tasks.for_ever(self.announce, name="announcing checkpoints", pause=ANNOUNCE_SECONDS)

    async def announce(self) -> None:
        """Enter what the catalogue does not know, and say what of this node's it is wrong about."""
        known = await self._known()  # first: what is ready by then lies on the disk by now
        for facts in (*await in_thread(self._on_disk), *self._in_memory()):
            if facts.id not in known:
                await self._add(facts)
        own = self._means.settings.node
        for row in known.values():
            if row.value.facts.node == own and row.value.state is not CheckpointState.DELETED:
                await self._correct(row, await in_thread(self._problem, row.value.facts))

    async def _known(self) -> dict[str, Row[CatalogueEntry]]:
        try:
            return await self._catalogue.all()
        except TopologyMissing:
            await self._bus.ensure_topology()
            return {}

    async def _add(self, facts: CheckpointFacts) -> None:
        entry = CatalogueEntry(facts=facts, state=CheckpointState.READY, updated=time.time())
        with suppress(Conflict):  # a controller was faster
            await self._catalogue.create(facts.id, entry)

    async def _correct(self, row: Row[CatalogueEntry], problem: str) -> None:
        if row.value.problem == problem:
            return
        if problem:
            log.warning("checkpoint %s is missing: %s", row.key, problem)
        else:
            log.info("checkpoint %s is there again", row.key)
        state = CheckpointState.MISSING if problem else CheckpointState.READY
        entry = msgspec.structs.replace(
            row.value, state=state, problem=problem, updated=time.time()
        )
        with suppress(Conflict):  # it was deleted meanwhile, or promised to a pod; else next time
            await self._catalogue.update(row.key, entry, row.revision)

    def _problem(self, facts: CheckpointFacts) -> str:
        """Why it is missing; empty when this node has it."""
        if facts.place == Place.MEMORY:
            asleep = self._means.ledger.sleeper(facts.id) is not None
            return "" if asleep else "its container does not wait in the node's memory any more"
        try:
            self._means.store.folder(facts.id)
        except NoSuchCheckpoint:
            return f"no folder with its manifest is in {self._means.store.root} any more"
        return ""

    def _on_disk(self) -> list[CheckpointFacts]:
        found = []
        for checkpoint in self._means.store.checkpoints():
            try:
                folder = self._means.store.folder(checkpoint)
                found.append(facts_of(read_manifest(folder), manifest_digest(folder)))
            except StoreError as error:
                log.warning("checkpoint %s is left out: %s", checkpoint, error)
        return found

    def _in_memory(self) -> list[CheckpointFacts]:
        return [decode(raw, Sleeper).facts for raw in self._means.ledger.sleepers()]
