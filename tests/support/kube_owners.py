"""Deployments, StatefulSets and Jobs whose pods ask to go on, and the webhook that is asked."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from controller.kube.client import CHECKPOINTS, PODS, WEBHOOKS, Kube, KubeProblem, Resource
from schemas.kubernetes import ADMISSION_ANNOTATION, RESTORE_FROM_ANNOTATION, RESUME_LABEL
from schemas.pods import Owner
from tests.support.balancer import balanced, free_ports
from tests.support.cluster_pods import counting_pod
from tests.support.controllers import until
from tests.support.kube_world import World
from tests.support.owned_pods import pod_of

CONFIGURATION: Final = "kybernate"
KINDS: Final = {
    "Deployment": Resource(api="/apis/apps/v1", plural="deployments"),
    "StatefulSet": Resource(api="/apis/apps/v1", plural="statefulsets"),
    "Job": Resource(api="/apis/batch/v1", plural="jobs"),
}


def owner(kind: str, name: str, pod: Any, *, replicas: int = 1, **spec: Any) -> dict[str, Any]:
    """An owner of pods like this one, with the label."""
    template = {
        "metadata": {
            "labels": {"app": name, RESUME_LABEL: "true"},
            "annotations": pod["metadata"].get("annotations", {}),
        },
        "spec": pod["spec"],
    }
    own: dict[str, Any] = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}}
    if kind == "Job":
        template["spec"] = template["spec"] | {"restartPolicy": "Never"}
        own = {}
    if kind == "StatefulSet":
        own["serviceName"] = name
    return {
        "apiVersion": KINDS[kind].api.removeprefix("/apis/"),
        "kind": kind,
        "metadata": {"name": name},
        "spec": own | {"template": template} | spec,
    }


def source_of(pod: Any) -> str:
    """The checkpoint that it resumes from, if any."""
    return str(pod["metadata"].get("annotations", {}).get(RESTORE_FROM_ANNOTATION, ""))


def name_of(pod: Any) -> str:
    return str(pod["metadata"]["name"])


class Owners:
    """Owners in a world's namespace; their pods are on its node and run as the test says."""

    def __init__(self, place: World) -> None:
        self.place = place
        self.kube = place.kube

    async def make(
        self, kind: str, *, replicas: int = 1, annotations: Any = None, **spec: Any
    ) -> list[Any]:
        """Its pods, once they run."""
        pod = counting_pod("unused", node=self.place.node)
        pod["spec"]["automountServiceAccountToken"] = False
        pod["metadata"]["annotations"] = annotations or {}
        body = owner(kind, "counter", pod, replicas=replicas, **spec)
        await self.kube.create(KINDS[kind], self.place.namespace, body)
        return await self.running(replicas)

    async def scale(self, kind: str, replicas: int) -> None:
        body = {"spec": {"replicas": replicas}}
        await self.kube.patch(KINDS[kind], self.place.namespace, "counter", body)

    async def pods(self, count: int, besides: Sequence[Any] = ()) -> list[Any]:
        """As many pods that stay, once there are; `besides` those that were there before."""
        known = {one["metadata"]["uid"] for one in besides}

        async def there() -> list[Any]:
            found, _ = await self.kube.listed(PODS, namespace=self.place.namespace)
            return [
                one
                for one in found
                if not one["metadata"].get("deletionTimestamp")
                and one["metadata"]["uid"] not in known
            ]

        return await until(there, lambda found: len(found) == count, every=0.1)

    async def running(self, count: int, besides: Sequence[Any] = ()) -> list[Any]:
        found = await self.pods(count, besides)
        return [await self.place.run_pod(name_of(one)) for one in found]

    async def evict(self, *pods: Any) -> list[str]:
        """Checkpoint them and have them deleted; the checkpoints' ids."""
        names = [name_of(one) for one in pods]
        for pod, name in zip(pods, names, strict=True):
            await self.place.checkpoint(f"{name}-{pod['metadata']['uid'][:4]}", podName=name)
        ended = [
            await self.place.in_phase(
                CHECKPOINTS, f"{name_of(pod)}-{pod['metadata']['uid'][:4]}", "Completed"
            )
            for pod in pods
        ]
        return [str(status["checkpointRef"]) for status in ended]


@asynccontextmanager
async def asked(place: World, count: int = 1, **more: Any) -> AsyncIterator[None]:
    """Controllers whose webhooks are asked in turn, once all of them answer."""
    ports = free_ports(count)
    listen = [f"127.0.0.1:{port}" for port in ports]
    async with (
        balanced(ports) as port,
        ask_at(place.kube, f"https://127.0.0.1:{port}/admit"),
        place.controllers(count, webhook_listen=listen, **more),
    ):
        for own in ports:
            await until(lambda own=own: shown(own), bool, every=0.1)  # type: ignore[misc]
        await until(lambda: is_asked(place.kube, place.namespace), bool, every=0.1)
        yield


@asynccontextmanager
async def ask_at(kube: Kube, url: str) -> AsyncIterator[None]:
    """Have the API server call the webhook there; afterwards as before."""
    found = await kube.get(WEBHOOKS, "", CONFIGURATION)
    assert found
    webhooks = [one | {"clientConfig": {"url": url}} for one in found["webhooks"]]
    await kube.patch(WEBHOOKS, "", CONFIGURATION, {"webhooks": webhooks})
    try:
        yield
    finally:
        await kube.patch(WEBHOOKS, "", CONFIGURATION, {"webhooks": found["webhooks"]})


async def is_asked(kube: Kube, namespace: str) -> bool:
    """Whether a new pod would be looked at, by a request that makes none."""
    body = pod_of(Owner(kind="ReplicaSet", name="nobody", uid="nobody"))
    body["metadata"]["ownerReferences"][0]["apiVersion"] = "apps/v1"
    path, dry = PODS.path(namespace), [("dryRun", "All")]
    try:
        made = await kube._ask("POST", path, query=dry, body=body)
    except KubeProblem:
        return False
    return ADMISSION_ANNOTATION in made["metadata"].get("annotations", {})


async def shown(port: int) -> str:
    """The certificate that is shown there; empty while there is none."""
    try:
        return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
    except OSError:
        return ""
