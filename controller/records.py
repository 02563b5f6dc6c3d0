"""The records of actions: compare-and-set on the actions bucket, with what was read kept at hand.

What is kept may be old; a write on it is then a Conflict, and leads to a new read. What somebody
wiped, this process writes again; and what it saw end stays ended, should another controller that
did not see the end have been faster with that.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from controller.topology import repaired
from controller.watchers import Watchers
from kybernate.bus.port import Bus, BusProblem, Change, Conflict, Row
from schemas.actions import Action
from schemas.base import Undecodable
from schemas.names import ACTIONS_BUCKET

ENDED_KEPT: Final = 2048
"""How many ended actions stay at hand for late events and for those who ask."""
ENDED_STORED_SECONDS: Final = 7 * 24 * 3600.0
"""Ended actions older than this are removed from the bucket, and deleted checkpoints too."""


class Records:
    def __init__(self, bus: Bus, *, clock: Callable[[], float] = time.time) -> None:
        self._bus = bus
        self._table = bus.table(ACTIONS_BUCKET, Action)
        self._clock = clock
        self._unfinished: dict[str, Row[Action]] = {}
        self._ended: OrderedDict[str, Row[Action]] = OrderedDict()
        self._writing: set[str] = set()
        self.watchers = Watchers()

    def unfinished(self) -> Iterator[Action]:
        return iter([row.value for row in self._unfinished.values()])

    async def create(self, action: Action) -> Action:
        """The new record, or Conflict when there is one of this id."""
        revision = await repaired(self._bus, lambda: self._table.create(action.id, action))
        return self._keep(Row(key=action.id, value=action, revision=revision)).value

    def seen(self, action: str) -> Row[Action] | None:
        """The record as this controller last saw it."""
        return self._unfinished.get(action) or self._ended.get(action)

    async def at_hand(self, action: str) -> Row[Action] | None:
        """The record, perhaps as it was a moment ago."""
        return self.seen(action) or await self.read(action)

    async def read(self, action: str) -> Row[Action] | None:
        """The record as it is now."""
        row = await repaired(self._bus, lambda: self._table.get(action))
        if row is not None:
            return self._keep(row)
        lost = self.seen(action)
        return None if lost is None else await self._write_again(lost)

    async def write(self, row: Row[Action], action: Action) -> Row[Action]:
        """The row with `action` in it; Conflict when somebody else was faster."""
        if action == row.value:
            return row
        self._writing.add(row.key)
        try:
            revision = await repaired(
                self._bus, lambda: self._table.update(row.key, action, row.revision)
            )
        except Conflict:
            self._ended.pop(row.key, None)
            raise
        finally:
            self._writing.discard(row.key)
        return self._keep(Row(key=row.key, value=action, revision=revision))

    async def all(self) -> tuple[Action, ...]:
        rows = await repaired(self._bus, self._table.all)
        return tuple(sorted((row.value for row in rows.values()), key=lambda one: one.created))

    async def reread(self) -> None:
        """Read everything: learn what others do, write again what is lost, remove what is old."""
        rows = await repaired(self._bus, self._table.all)
        for row in [row for key, row in self._unfinished.items() if key not in rows]:
            await self._write_again(row)
        for kept in [row for row in self._ended.values() if not self._is_old(row)]:
            await self._end_again(kept, rows.get(kept.key))
        for row in rows.values():
            self._learn(row)
            if self._is_old(row):
                await self._table.delete(row.key)

    async def follow_changes(self) -> None:
        """Read again at once what somebody watches here and another controller changed."""
        async with self._table.changes() as changes:
            async for change in changes:
                if self.watchers.wanted(change.key) and not self._is_own(change):
                    await self.read(change.key)
        raise BusProblem("the bucket's changes are told no more")

    def _is_own(self, change: Change) -> bool:
        """Word of a write comes before its confirmation, which is seen to anyway, or after it."""
        kept = self.seen(change.key)
        return change.key in self._writing or (
            kept is not None and kept.revision == change.revision
        )

    async def _write_again(self, lost: Row[Action]) -> Row[Action]:
        action = lost.value
        try:
            revision = await repaired(self._bus, lambda: self._table.create(action.id, action))
        except Conflict:
            with suppress(Undecodable):  # a newer controller's: not for this one to judge
                if found := await self._table.get(action.id):
                    return self._keep(found)
            return lost
        return self._keep(Row(key=action.id, value=action, revision=revision))

    async def _end_again(self, kept: Row[Action], found: Row[Action] | None) -> None:
        if found is None:
            await self._write_again(kept)
        elif not found.value.ended:
            with suppress(Conflict):  # it has gone on since it was read
                await self._table.update(kept.key, kept.value, found.revision)

    def _is_old(self, row: Row[Action]) -> bool:
        return row.value.ended and self._clock() - row.value.updated > ENDED_STORED_SECONDS

    def _learn(self, row: Row[Action]) -> None:
        kept = self.seen(row.key)
        if kept is None and row.value.ended:
            return
        if kept is None or row.revision > kept.revision:
            self._keep(row)
        elif kept is not row and kept == row and row.key in self._ended:
            self._ended[row.key] = row  # the one that the table keeps: no second copy of it

    def _keep(self, row: Row[Action]) -> Row[Action]:
        if row.value.ended:
            self._unfinished.pop(row.key, None)
            self._ended[row.key] = row
            while len(self._ended) > ENDED_KEPT:
                self._ended.popitem(last=False)
        elif row.key in self._ended:
            return self._ended[row.key]
        else:
            self._unfinished[row.key] = row
        self.watchers.tell(row.value)
        return row
