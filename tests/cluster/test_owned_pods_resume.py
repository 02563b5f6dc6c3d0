"""The pods that owners make after an eviction go on counting, on a real node."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from controller.kube.client import Kube, connect
from kybernate.embedded.kubernetes.cluster import Cluster
from schemas.kubernetes import API_VERSION
from tests.support.cluster_pods import counting_pod, loops
from tests.support.controllers import until
from tests.support.kube_owners import ask_at, is_asked, name_of, owner
from tests.support.node_services import NodeServices

PORT = 9443
NODE = 2
LONG_SECONDS = 400
COUNT_TO = 60
FINITE = f"i=0; while [ $i -lt {COUNT_TO} ]; do i=$((i + 1)); echo Loop $i; sleep 0.2; done"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def kube(own_cluster: Cluster) -> AsyncIterator[Kube]:
    async with connect(own_cluster.kubeconfig) as kube:
        yield kube


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def services(own_cluster: Cluster, kube: Kube, account: Path) -> AsyncIterator[NodeServices]:
    """Kybernate on a node, with a webhook that the API server calls at the node's address."""
    at = f"{own_cluster.node(NODE).address}:{PORT}"
    options = ("--kubernetes", "--kubeconfig", account, "--webhook-listen", at)
    services = NodeServices(own_cluster, NODE, *options)
    async with ask_at(kube, f"https://{at}/admit"):
        await services.start()
        try:
            await until(lambda: is_asked(kube, "default"), bool, every=0.2)
            yield services
        finally:
            await services.stop()


class Owned:
    """One owner on the services' node."""

    def __init__(self, services: NodeServices, kind: str) -> None:
        self.cluster = services.cluster
        self.kind = kind
        self.name = f"counting-{kind.lower()}"
        self.node = services.node.name

    async def make(
        self, replicas: int = 1, command: str = "", grace_seconds: int = 0, **spec: int
    ) -> list[str]:
        """Its pods, once each has counted a little; `spec`: more of the owner's."""
        pod = counting_pod("unused")
        pod["spec"]["terminationGracePeriodSeconds"] = grace_seconds
        pod["spec"]["nodeSelector"] = {"kubernetes.io/hostname": self.node}
        if command:
            pod["spec"]["containers"][0]["command"] = ["sh", "-c", command]
        body = owner(self.kind, self.name, pod, replicas=replicas, **spec)
        await self.cluster.apply(body)
        names = await self.pods(replicas)
        for name in names:
            await self.counted(name)
        return names

    async def pods(self, count: int, besides: tuple[str, ...] = ()) -> list[str]:
        """As many that stay, once there are; `besides` the UIDs of others."""

        async def there() -> list[Any]:
            found = (await self.cluster.get("pods", "--selector", f"app={self.name}"))["items"]
            return [
                one
                for one in found
                if not one["metadata"].get("deletionTimestamp")
                and one["metadata"]["uid"] not in besides
            ]

        found = await until(there, lambda pods: len(pods) == count, every=0.3)
        return sorted(map(name_of, found))

    async def uid(self, pod: str) -> str:
        return str((await self.cluster.pod(pod))["metadata"]["uid"])

    async def counted(self, pod: str) -> list[int]:
        """What it has said, once that is a few numbers."""
        await self.cluster.wait_for(pod)
        log = await until(
            lambda: self.cluster.kubectl("logs", pod), lambda log: len(loops(log)) > 3, every=0.3
        )
        return loops(log)

    async def evict(self, pod: str) -> None:
        spec = {"podName": pod}
        metadata = {"name": self.name}
        kind = {"apiVersion": API_VERSION, "kind": "KybernateCheckpoint"}
        await self.cluster.apply(kind | {"metadata": metadata, "spec": spec})

    async def remove(self) -> None:
        await self.cluster.kubectl("delete", self.kind.lower(), self.name, "--ignore-not-found")
        await self.cluster.kubectl(
            *("delete", "pod", "--selector", f"app={self.name}", "--grace-period=1", "--wait=false")
        )
        await self.cluster.kubectl("delete", "kyc", self.name, "--ignore-not-found")


@pytest.fixture
async def owned(request: pytest.FixtureRequest, services: NodeServices) -> AsyncIterator[Owned]:
    owned = Owned(services, request.param)
    yield owned
    await owned.remove()


@pytest.mark.parametrize("owned", ["Deployment"], indirect=True)
async def test_one_replica_goes_on_and_the_others_are_left_alone(owned: Owned) -> None:
    evicted, other = await owned.make(replicas=2, grace_seconds=LONG_SECONDS)
    before = await owned.uid(other)
    old = await owned.uid(evicted)
    await owned.evict(evicted)
    (heir,) = await owned.pods(1, besides=(old, before))

    assert (await owned.counted(heir))[0] > 3
    await owned.cluster.wait_gone(evicted, timeout=LONG_SECONDS / 2)
    assert await owned.uid(other) == before
    await owned.cluster.kubectl("scale", "deployment", owned.name, "--replicas=3")
    (third,) = await owned.pods(1, besides=(old, before, await owned.uid(heir)))
    assert (await owned.counted(third))[0] == 1


@pytest.mark.parametrize("owned", ["StatefulSet"], indirect=True)
async def test_a_stateful_pod_goes_on_under_its_name(owned: Owned) -> None:
    (pod,) = await owned.make()
    old = await owned.uid(pod)
    await owned.evict(pod)
    assert await owned.pods(1, besides=(old,)) == [pod]

    assert (await owned.counted(pod))[0] > 3


@pytest.mark.parametrize("owned", ["StatefulSet"], indirect=True)
async def test_who_cannot_go_where_its_checkpoint_is_waits_and_says_so(owned: Owned) -> None:
    (pod,) = await owned.make()
    old = await owned.uid(pod)
    async with cordoned(owned):
        await owned.evict(pod)
        await owned.pods(1, besides=(old,))
        selector = f"--field-selector=involvedObject.name={pod},reason=WaitsForNode"

        async def told() -> str:
            return await owned.cluster.kubectl("get", "events", selector, "--output", "name")

        await until(told, bool, every=0.3)

    assert (await owned.counted(pod))[0] > 3


@contextlib.asynccontextmanager
async def cordoned(owned: Owned) -> AsyncIterator[None]:
    await owned.cluster.kubectl("cordon", owned.node)
    try:
        yield
    finally:
        await owned.cluster.kubectl("uncordon", owned.node)


@pytest.mark.parametrize("owned", ["Job"], indirect=True)
async def test_a_jobs_pod_goes_on_to_its_end(owned: Owned) -> None:
    (pod,) = await owned.make(command=FINITE, grace_seconds=30, backoffLimit=0)
    old = await owned.uid(pod)
    await owned.evict(pod)
    (heir,) = await owned.pods(1, besides=(old,))

    await owned.cluster.wait_for(heir, "Succeeded")
    said = loops(await owned.cluster.kubectl("logs", heir))
    assert said[0] > 3
    assert said[-1] == COUNT_TO
    await owned.cluster.kubectl(
        "wait", "job", owned.name, "--for=condition=Complete", "--timeout=150s", timeout=160
    )
