"""The catalogue of checkpoints. What is deleted stays in it as deleted for a week, without what a
new pod would be made of, and never comes back.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from controller.records import ENDED_STORED_SECONDS
from controller.topology import repaired
from kybernate.bus.port import Bus, Conflict, Mark, Row
from schemas.base import Undecodable
from schemas.checkpoints import CatalogueEntry, CheckpointState, Heir
from schemas.manifest import CheckpointFacts
from schemas.names import CHECKPOINTS_BUCKET

WRITE_TRIES: Final = 5


class Catalogue:
    """The checkpoints bucket; what was seen of it is written again should somebody wipe it."""

    def __init__(self, bus: Bus, *, clock: Callable[[], float] = time.time) -> None:
        self._bus = bus
        self._table = bus.table(CHECKPOINTS_BUCKET, CatalogueEntry)
        self._clock = clock
        self._seen: dict[str, CatalogueEntry] = {}
        self._mark = Mark()

    async def get(self, checkpoint: str) -> CatalogueEntry | None:
        row = await repaired(self._bus, lambda: self._table.get(checkpoint))
        return self._seen.get(checkpoint) if row is None else self._see(row)

    async def all(self) -> tuple[CatalogueEntry, ...]:
        rows = await repaired(self._bus, self._table.all)
        for row in rows.values():
            self._see(row)
        return self.seen()

    async def refresh(self) -> None:
        """See what was written since the last time: the bucket may be large."""
        rows, self._mark = await repaired(self._bus, lambda: self._table.since(self._mark))
        for row in rows.values():
            self._see(row)

    def seen(self) -> tuple[CatalogueEntry, ...]:
        """All that were read or written so far, as they were then."""
        return tuple(sorted(self._seen.values(), key=lambda entry: entry.facts.created))

    async def record(self, facts: CheckpointFacts) -> None:
        """Enter a durable checkpoint, unless it is in already: ready or deleted."""
        entry = CatalogueEntry(facts=facts, state=CheckpointState.READY, updated=self._clock())
        if facts.id not in self._seen:
            await self._create(entry)

    async def bequeath(self, entry: CatalogueEntry, heir: Heir) -> None:
        """Promise it to a pod; Conflict when something changed since `entry` was read."""
        checkpoint = entry.facts.id
        row = await repaired(self._bus, lambda: self._table.get(checkpoint))
        if row is None or (row.value.heir, row.value.state) != (entry.heir, entry.state):
            raise Conflict(f"checkpoint {checkpoint} was promised to another pod, or deleted")
        changed = msgspec.structs.replace(row.value, heir=heir, updated=self._clock())
        await self._table.update(checkpoint, changed, row.revision)
        self._seen[checkpoint] = changed

    async def mark_deleted(self, checkpoint: str) -> None:
        for _ in range(WRITE_TRIES):
            with suppress(Conflict):  # somebody else did, or it has just been promised to a pod
                return await self._mark_deleted(checkpoint)
        raise Conflict(
            f"checkpoint {checkpoint} was written by others {WRITE_TRIES} times in a row"
        )

    async def mark_missing(self, node: str, problem: str) -> tuple[str, ...]:
        """All that lie on the node, which is gone; their ids, and of those that are so already."""
        entries = [entry for entry in await self.all() if entry.facts.node == node]
        left = [entry for entry in entries if entry.state is not CheckpointState.DELETED]
        for entry in left:
            if entry.state is CheckpointState.READY:
                await self._mark_missing(entry.facts.id, problem)
        return tuple(entry.facts.id for entry in left)

    async def heal(self) -> None:
        """Enter again what was seen and is gone; forget what was deleted long ago."""
        rows = await repaired(self._bus, self._table.all)
        for row in [row for row in rows.values() if self._is_old(row.value)]:
            await self._table.delete(row.key)
            del rows[row.key]
        for key in [key for key, entry in self._seen.items() if self._is_old(entry)]:
            del self._seen[key]
        missing = [entry for key, entry in self._seen.items() if key not in rows]
        for row in rows.values():
            if (seen := self._see(row)).heir != row.value.heir:
                with suppress(Conflict):  # it has gone on since it was read
                    await self._table.update(row.key, seen, row.revision)
        for entry in missing:
            await self._create(entry)

    async def _mark_deleted(self, checkpoint: str) -> None:
        row = await repaired(self._bus, lambda: self._table.get(checkpoint))
        known = row.value if row else self._seen.get(checkpoint)
        if known is None or (row and known.state is CheckpointState.DELETED):
            return
        entry = msgspec.structs.replace(
            known,
            facts=_remembered(known.facts),
            state=CheckpointState.DELETED,
            problem="",
            updated=self._clock(),
        )
        if row is None:
            await self._create(entry)
            return
        await self._table.update(checkpoint, entry, row.revision)
        self._seen[checkpoint] = entry

    async def _mark_missing(self, checkpoint: str, problem: str) -> None:
        row = await repaired(self._bus, lambda: self._table.get(checkpoint))
        if row is None or row.value.state is not CheckpointState.READY:
            return
        entry = msgspec.structs.replace(
            row.value, state=CheckpointState.MISSING, problem=problem, updated=self._clock()
        )
        with suppress(Conflict):  # somebody works with it, and finds out
            await self._table.update(checkpoint, entry, row.revision)
            self._seen[checkpoint] = entry

    async def _create(self, entry: CatalogueEntry) -> None:
        checkpoint = entry.facts.id
        try:
            await repaired(self._bus, lambda: self._table.create(checkpoint, entry))
        except Conflict:
            with suppress(Undecodable):  # a newer controller's: not for this one to judge
                row = await self._table.get(checkpoint)
                entry = row.value if row else entry
        self._seen[checkpoint] = entry

    def _is_old(self, entry: CatalogueEntry) -> bool:
        deleted = entry.state is CheckpointState.DELETED
        return deleted and self._clock() - entry.updated > ENDED_STORED_SECONDS

    def _see(self, row: Row[CatalogueEntry]) -> CatalogueEntry:
        """A node that enters what it holds knows nothing of heirs, and a deleted one stays so."""
        seen = self._seen.get(row.key)
        if seen is None:
            self._seen[row.key] = row.value
        elif seen.state is not CheckpointState.DELETED:
            heir = max(row.value.heir, seen.heir, key=_age)
            same = heir == row.value.heir
            entry = row.value if same else msgspec.structs.replace(row.value, heir=heir)
            self._seen[row.key] = entry
        return self._seen[row.key]


def _remembered(facts: CheckpointFacts) -> CheckpointFacts:
    """Who it was stays, how to make it anew does not."""
    if facts.pod is None:
        return facts
    return msgspec.structs.replace(facts, pod=msgspec.structs.replace(facts.pod, template=""))


def _age(heir: Heir | None) -> tuple[float, bool]:
    return (heir.since, heir.started) if heir else (0.0, False)
