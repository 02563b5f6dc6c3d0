"""Controllers that reconcile a real API server, with a node that is nobody's but the test's.

The node is an object without a kubelet, so pods on it do what the test says; its worker is a fake
one on an in-memory bus. The controllers act as their own service account, with its roles only.
"""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from controller.app import serving
from controller.kube.client import CHECKPOINTS, NODES, PODS, RESTORES, Kube, Resource, connect
from controller.settings import ControllerSettings
from kybernate.bus.memory import MemoryBroker
from kybernate.bus.port import Bus, Conflict
from kybernate.embedded.kubernetes.cluster import Cluster
from schemas.actions import Action, ActionState
from schemas.checkpoints import CatalogueEntry, Heir
from schemas.kubernetes import API_VERSION
from schemas.names import ACTIONS_BUCKET, CHECKPOINTS_BUCKET
from tests.support.controllers import IMPATIENT, until
from tests.support.fake_worker import FakeWorker, working

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMESPACES = Resource(api="/api/v1", plural="namespaces")
KINDS = len(list((DEPLOY / "crds").glob("*.yaml")))
EVENTS = Resource(api="/api/v1", plural="events")
ACCOUNTS = Resource(api="/api/v1", plural="serviceaccounts")


async def install(cluster: Cluster, folder: Path) -> Path:
    """CRDs, roles and runtime classes; the kubeconfig of the controllers' account. By then kubectl
    knows the kinds' short names: it does not ask anew for those.
    """
    for part in ("crds", "base"):
        await cluster.kubectl("apply", "--filename", DEPLOY / part)
    await cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=50s")
    ours = ("api-resources", "--api-group", "kybernate.io", "--output", "name")
    await until(lambda: cluster.kubectl(*ours), lambda said: len(said.split()) == KINDS, every=0.2)
    config = json.loads(
        await cluster.kubectl("config", "view", "--raw", "--flatten", "--output", "json")
    )
    config["users"] = [{"name": "controller", "user": {"token": await _token(cluster)}}]
    for context in config["contexts"]:
        context["context"]["user"] = "controller"
    file = folder / "controller.kubeconfig"
    file.write_text(json.dumps(config))
    return file


async def _token(cluster: Cluster) -> str:
    """Of the service account: made by the cluster as long as Kubernetes is older than 1.24."""
    account = ("serviceaccount", "kybernate-controller", "--namespace", "kybernate")

    async def names() -> list[str]:
        return [one["name"] for one in (await cluster.get(*account)).get("secrets", [])]

    name = (await until(names, bool, every=0.2))[0]
    secret = await cluster.get("secret", name, "--namespace", "kybernate")
    return base64.b64decode(secret["data"]["token"]).decode()


class World:
    """One namespace and one node, whose pods run as the test says."""

    def __init__(
        self, kube: Kube, bus: Bus, worker: FakeWorker, node: str, kubeconfig: Path
    ) -> None:
        self.kube = kube
        self.bus = bus
        self.worker = worker
        self.node = node
        self.namespace = node
        self._settings = ControllerSettings(
            listen="127.0.0.1:0", kubernetes=True, kubeconfig=kubeconfig
        )

    @asynccontextmanager
    async def controllers(self, count: int = 1, **more: Any) -> AsyncIterator[None]:
        """`more`: settings of theirs; those that are lists have one value for each."""
        async with AsyncExitStack() as stack:
            for number in range(count):
                own = {
                    name: one[number] if isinstance(one, list) else one
                    for name, one in more.items()
                }
                settings = msgspec.structs.replace(self._settings, **own)
                await stack.enter_async_context(serving(settings, self.bus, rules=IMPATIENT))
            yield

    async def pod(self, name: str, *, run: bool = True, **spec: Any) -> Any:
        """A pod on the node; it runs at once unless told otherwise."""
        container = {"name": "counter", "image": "none"}
        body = {
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "containers": [container],
                "nodeName": self.node,
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
            }
            | spec,
        }
        made = await self.kube.create(PODS, self.namespace, body)
        return await self.run_pod(name) if run else made

    async def run_pod(self, name: str, **state: Any) -> Any:
        """What kubelet would say of a pod; its container runs unless told otherwise."""
        container = {
            "name": "counter",
            "image": "none",
            "imageID": "none",
            "ready": not state,
            "restartCount": 0,
            "containerID": f"containerd://{secrets.token_hex(32)}",
            "state": state or {"running": {}},
        }
        phase = "Pending" if state else "Running"
        body = {"status": {"phase": phase, "containerStatuses": [container]}}
        return await self.kube.patch(PODS, self.namespace, name, body, part="status")

    async def checkpoint(self, name: str, **spec: Any) -> Any:
        return await self._create(CHECKPOINTS, "KybernateCheckpoint", name, spec)

    async def restore(self, name: str, **spec: Any) -> Any:
        return await self._create(RESTORES, "KybernateRestore", name, spec)

    async def _create(self, resource: Resource, kind: str, name: str, spec: Any) -> Any:
        body = {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": name},
            "spec": spec,
        }
        return await self.kube.create(resource, self.namespace, body)

    async def once(self, resource: Resource, name: str, fits: Callable[[Any], bool]) -> Any:
        """The object, once it fits."""
        return await until(lambda: self.kube.get(resource, self.namespace, name), fits, every=0.1)

    async def in_phase(self, resource: Resource, name: str, phase: str) -> Any:
        found = await self.once(
            resource, name, lambda one: (one or {}).get("status", {}).get("phase") == phase
        )
        return found["status"]

    async def events(self, name: str) -> dict[str, str]:
        """Messages by reason, of what is told about an object."""
        found, _ = await self.kube.listed(EVENTS)
        return {
            one["reason"]: one["message"]
            for one in found
            if one["involvedObject"]["name"] == name and one["metadata"]["namespace"] == self.node
        }

    async def catalogue(self) -> dict[str, str]:
        """The state of every checkpoint."""
        return {entry.facts.id: entry.state.value for entry in await self.entries()}

    async def heirs(self) -> list[str]:
        """The pods to which checkpoints are promised; an empty name for one not seen yet."""
        return [entry.heir.pod for entry in await self.entries() if entry.heir]

    async def promise(self, checkpoint: str, heir: Heir) -> None:
        """As if it had been promised to that one."""
        table = self.bus.table(CHECKPOINTS_BUCKET, CatalogueEntry)
        while row := await table.get(checkpoint):
            entry = msgspec.structs.replace(row.value, heir=heir)
            try:
                await table.update(checkpoint, entry, row.revision)
            except Conflict:  # a controller has noted something meanwhile
                continue
            return
        raise AssertionError(f"there is no checkpoint {checkpoint}")

    async def at_work(self) -> list[str]:
        """The actions that the worker has begun."""
        rows = await self.bus.table(ACTIONS_BUCKET, Action).all()
        return [key for key, row in rows.items() if row.value.state is ActionState.RUNNING]

    async def entries(self) -> list[CatalogueEntry]:
        rows = await self.bus.table(CHECKPOINTS_BUCKET, CatalogueEntry).all()
        return [row.value for row in rows.values()]


@asynccontextmanager
async def world(cluster: Cluster, kubeconfig: Path, **how: Any) -> AsyncIterator[World]:
    """`how`: what the fake worker is told."""
    node = f"kyb-{secrets.token_hex(4)}"
    bus = MemoryBroker().bus()
    await bus.ensure_topology()
    await bus.ensure_queue(node)
    async with connect(cluster.kubeconfig) as kube:
        await kube.create(NODES, "", {"metadata": {"name": node}})
        await kube.create(NAMESPACES, "", {"metadata": {"name": node}})
        await until(lambda: kube.get(ACCOUNTS, node, "default"), bool, every=0.1)  # pods need it
        try:
            async with working(FakeWorker(bus, node, **how)) as worker:
                yield World(kube, bus, worker, node, kubeconfig)
        finally:
            await _remove(kube, node)


async def _remove(kube: Kube, name: str) -> None:
    """Nobody is left to take the finalizers off."""
    found, _ = await kube.listed(CHECKPOINTS)
    for one in found:
        at = one["metadata"]
        if at["namespace"] == name:
            body: dict[str, Any] = {"metadata": {"finalizers": []}}
            await kube.patch(CHECKPOINTS, name, at["name"], body)
    for resource in (NAMESPACES, NODES):
        if (there := await kube.get(resource, "", name)) is not None:
            await kube.delete(resource, "", name, uid=there["metadata"]["uid"])


def condition(status: Any, kind: str) -> Any:
    """The condition of that type, or nothing."""
    return next((one for one in status["conditions"] if one["type"] == kind), None)


async def settle() -> None:
    """Long enough for a controller to do what it must not do."""
    await asyncio.sleep(1.5)
