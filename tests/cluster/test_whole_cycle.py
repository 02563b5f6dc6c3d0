"""A pod comes back as another one, by custom resources alone, on a real node."""

from pathlib import Path
from typing import Any

from kybernate.embedded.kubernetes.cluster import Cluster
from schemas.kubernetes import API_VERSION
from tests.support.cluster_pods import counting_pod, loops
from tests.support.controllers import until
from tests.support.node_services import NodeServices

NODE = 2


def resource(kind: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "cycle"}, "spec": spec}


async def in_phase(cluster: Cluster, kind: str, phase: str) -> Any:
    async def status() -> Any:
        return (await cluster.get(kind, "cycle")).get("status", {})

    return await until(status, lambda told: told.get("phase") == phase, every=0.5)


async def test_the_count_goes_on_in_a_new_pod(
    own_cluster: Cluster, account: Path, name: str
) -> None:
    options = ("--kubernetes", "--kubeconfig", account)
    services = NodeServices(own_cluster, NODE, *options)
    await services.start()
    try:
        await own_cluster.apply(counting_pod(name, node=own_cluster.node(NODE).name))
        await own_cluster.wait_for(name)
        await until(lambda: own_cluster.kubectl("logs", name), lambda log: len(loops(log)) > 3)
        await own_cluster.apply(resource("KybernateCheckpoint", podName=name))
        await in_phase(own_cluster, "kyc", "Completed")
        await own_cluster.wait_gone(name)

        await own_cluster.apply(resource("KybernateRestore", checkpointRef="cycle"))
        restored = (await in_phase(own_cluster, "kyr", "Running"))["restoredPodName"]
        said = await until(lambda: own_cluster.kubectl("logs", restored), bool, every=0.3)
        assert loops(said)[0] > 3

        await own_cluster.kubectl("delete", "pod", restored, "--wait=false")
        await own_cluster.kubectl("delete", "kyr,kyc", "cycle")
        assert not list(services.checkpoints.glob("*-*"))
    finally:
        await services.stop()
