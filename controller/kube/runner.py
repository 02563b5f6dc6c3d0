"""Everything of Kubernetes in one task: informers, queues, reconcilers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ssl import SSLContext

from aiohttp import web

from controller.catalogue import Catalogue
from controller.engine import Engine
from controller.kube import heirs, webhook
from controller.kube.checkpoints import Checkpoints
from controller.kube.client import CHECKPOINTS, PODS, RESTORES, Json, Kube, connect
from controller.kube.heirs import Heirs
from controller.kube.means import Means
from controller.kube.queue import Queue
from controller.kube.restores import Restores
from controller.kube.trust import Trust
from controller.kube.watch import Informer, Key, key_of
from controller.nodes import Nodes
from controller.records import Records
from controller.service import Service
from controller.settings import ControllerSettings
from schemas.kubernetes import RESTORE_LABEL


class Reconciling:
    """The reconcilers and what they look at, wired."""

    def __init__(self, kube: Kube, means: Means) -> None:
        self._checkpoints = Informer(kube, CHECKPOINTS, self._checkpoint_changed)
        self._restores = Informer(kube, RESTORES, self._restore_changed)
        self._pods = Informer(kube, PODS, self._pod_changed, selector=RESTORE_LABEL)
        self._restore = Restores(means, self._restores, self._checkpoints)
        self._of_checkpoints = Queue("checkpoint", Checkpoints(means, self._checkpoints).attend)
        self._of_restores = Queue("restore", self._restore.attend)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for informer in (self._checkpoints, self._restores, self._pods):
                tasks.create_task(informer.run())
            for informer in (self._checkpoints, self._restores):
                await informer.listed.wait()
            for queue in (self._of_checkpoints, self._of_restores):
                tasks.create_task(queue.run())

    def _checkpoint_changed(self, one: Json) -> None:
        key = key_of(one)
        self._of_checkpoints.add(key)
        for restore in self._waiting_for(key):
            self._of_restores.add(restore)

    def _restore_changed(self, one: Json) -> None:
        self._of_restores.add(key_of(one))

    def _pod_changed(self, pod: Json) -> None:
        for key in self._restore.keys_of(pod):
            self._of_restores.add(key)

    def _waiting_for(self, checkpoint: Key) -> list[Key]:
        namespace, name = checkpoint
        return [
            key_of(one)
            for one in self._restores.all()
            if one["metadata"]["namespace"] == namespace and one["spec"]["checkpointRef"] == name
        ]


class Webhook:
    """What new pods with the label inherit, wired."""

    def __init__(self, kube: Kube, means: Means, *, lifetime: float) -> None:
        """`lifetime`: the certificate's, in seconds."""
        self._pods = Informer(kube, PODS, self._pod_changed, selector=heirs.SELECTOR)
        of_pods = Heirs(means, self._pods)
        self._of_pods = Queue("pod", of_pods.attend)
        self._trust = Trust(kube, lifetime=lifetime)
        self.tls: SSLContext = self._trust.tls
        self.application: web.Application = webhook.application(of_pods.answer)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for part in (self._trust, self._pods, self._of_pods):
                tasks.create_task(part.run())

    def _pod_changed(self, pod: Json) -> None:
        self._of_pods.add(key_of(pod))


@asynccontextmanager
async def connected(
    settings: ControllerSettings,
    *,
    service: Service,
    engine: Engine,
    records: Records,
    catalogue: Catalogue,
    nodes: Nodes,
) -> AsyncIterator[tuple[Reconciling, Webhook | None]]:
    """Connected to the API server, not at work yet."""
    async with connect(settings.kubeconfig) as kube:
        means = Means(
            kube=kube,
            service=service,
            engine=engine,
            records=records,
            catalogue=catalogue,
            nodes=nodes,
        )
        lifetime = settings.webhook_certificate_seconds
        asked = Webhook(kube, means, lifetime=lifetime) if settings.webhook_listen else None
        yield Reconciling(kube, means), asked
