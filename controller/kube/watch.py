"""What there is of one kind of object in the cluster, kept current.

List, then watch from that version; whenever the watch says anything but changes, list again, after
a pause that differs from process to process. What was missed meanwhile shows in the new list.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from controller.kube.client import Expired, Json, Kube, Resource
from kybernate.tasks import for_ever, jittered

RELIST_SECONDS: Final = 300.0
PAUSE_SECONDS: Final = 0.5

Key = tuple[str, str]
"""Namespace and name."""


class Informer:
    def __init__(
        self, kube: Kube, resource: Resource, changed: Callable[[Json], None], *, selector: str = ""
    ) -> None:
        """`changed` is told every object that came, changed or went."""
        self._kube = kube
        self._resource = resource
        self._changed = changed
        self._selector = selector
        self._items: dict[Key, Json] = {}
        self.listed = asyncio.Event()

    def get(self, key: Key) -> Json | None:
        return self._items.get(key)

    def all(self) -> tuple[Json, ...]:
        return tuple(self._items.values())

    async def run(self) -> None:
        name = f"watching {self._resource.plural}"
        await for_ever(self._follow, name=name, pause=PAUSE_SECONDS)

    async def _follow(self) -> None:
        version = await self._list()
        end = time.monotonic() + jittered(RELIST_SECONDS)
        try:
            while time.monotonic() < end:
                version = await self._watch(version)
        except Expired:
            return

    async def _list(self) -> str:
        found, version = await self._kube.listed(self._resource, selector=self._selector)
        before, self._items = self._items, {key_of(one): one for one in found}
        for key, one in before.items():
            if key not in self._items:
                self._changed(one)
        for one in found:
            self._changed(one)
        self.listed.set()
        return version

    async def _watch(self, version: str) -> str:
        async for change in self._kube.watch(self._resource, version, selector=self._selector):
            version = change.object["metadata"]["resourceVersion"]
            if change.type == "BOOKMARK":
                continue
            if change.type == "DELETED":
                self._items.pop(key_of(change.object), None)
            else:
                self._items[key_of(change.object)] = change.object
            self._changed(change.object)
        return version


def key_of(one: Json) -> Key:
    return one["metadata"].get("namespace", ""), one["metadata"]["name"]
