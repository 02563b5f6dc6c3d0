"""What the reconcilers work with, and how they tell the world: status and events.

A status is written only as long as nobody else wrote, so that two controllers take turns. An event
is named by what it says, so that it is told once, however often and by whomever.
"""

import time
import uuid
from collections.abc import Callable
from typing import Final

import msgspec

from controller.catalogue import Catalogue
from controller.engine import Engine
from controller.kube.client import EVENTS, Json, Kube, Resource, Taken
from controller.kube.conditions import timestamp
from controller.nodes import Nodes
from controller.records import Records
from controller.service import Service
from schemas.kubernetes import (
    API_VERSION,
    CheckpointStatus,
    KybernateCheckpoint,
    KybernateRestore,
    ObjectMeta,
    RestoreStatus,
)

COMPONENT: Final = "kybernate-controller"
LONGEST_MESSAGE: Final = 1000
"""An event's: the API server takes 1024 bytes."""

Object = KybernateCheckpoint | KybernateRestore


class Means(msgspec.Struct, frozen=True, kw_only=True):
    kube: Kube
    service: Service
    engine: Engine
    records: Records
    catalogue: Catalogue
    nodes: Nodes
    clock: Callable[[], float] = time.time

    async def show(
        self, resource: Resource, of: Object, status: CheckpointStatus | RestoreStatus
    ) -> None:
        """Write the status, when there is news in it."""
        if status == of.status:
            return
        metadata = {"resourceVersion": of.metadata.resource_version}
        body = {"metadata": metadata, "status": msgspec.to_builtins(status)}
        at = of.metadata
        await self.kube.patch(resource, at.namespace, at.name, body, part="status")

    async def tell(self, about: Object | Json, reason: str, message: str, *, warning: bool) -> None:
        """An event of a resource of ours, or of a pod."""
        named = _named(about)
        event = self._event(named, reason, message, warning)
        try:
            await self.kube.create(EVENTS, named["namespace"], event)
        except Taken:  # told before
            return

    def _event(self, about: Json, reason: str, message: str, warning: bool) -> Json:  # noqa: FBT001
        now = timestamp(self.clock())
        digest = uuid.uuid5(uuid.UUID(about["uid"]), f"{reason} {message}").hex
        name = f"{about['name'][:200]}.{digest[:16]}"
        return {
            "metadata": {"name": name, "namespace": about["namespace"]},
            "involvedObject": about,
            "reason": reason,
            "message": message[:LONGEST_MESSAGE],
            "type": "Warning" if warning else "Normal",
            "source": {"component": COMPONENT},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def _named(about: Object | Json) -> Json:
    if isinstance(about, dict):
        at, kind = (
            msgspec.convert(about["metadata"], ObjectMeta),
            {"apiVersion": "v1", "kind": "Pod"},
        )
    else:
        at = about.metadata
        kind = {"apiVersion": API_VERSION, "kind": type(about).__name__}
    return kind | {"namespace": at.namespace, "name": at.name, "uid": at.uid}
