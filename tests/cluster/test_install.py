"""`kybernate node install` on a real node that knew nothing of Kybernate, and the way back."""

import contextlib
import shutil
from collections.abc import AsyncIterator

import pytest

from kybernate.embedded.kubernetes.cluster import Cluster
from kybernate.embedded.kubernetes.commands import CommandFailed
from kybernate.embedded.kubernetes.waiting import until
from tests.support.bare_node import BareNode, bare_node
from tests.support.cluster_pods import counting_pod, loops
from tests.support.node_services import NodeServices

NODE = 2
TIMEOUT = 150.0


@pytest.fixture
async def bare(own_cluster: Cluster) -> AsyncIterator[BareNode]:
    async with bare_node(own_cluster.node(NODE)) as made:
        yield made


@contextlib.asynccontextmanager
async def services(cluster: Cluster) -> AsyncIterator[NodeServices]:
    running = NodeServices(cluster, NODE)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
        shutil.rmtree(running.state)


async def test_a_node_is_made_ready_and_is_as_before_afterwards(
    own_cluster: Cluster, bare: BareNode, names: tuple[str, str]
) -> None:
    untouched = bare.config.read_bytes()
    pods = [counting_pod(name, node=bare.node.name, runtime_class="kybernate") for name in names]
    await own_cluster.apply(pods[0])
    await until(lambda: refused(own_cluster, names[0]), timeout=TIMEOUT)

    assert "restarted containerd" in await bare.install()
    await own_cluster.wait_for(names[0])
    assert "nothing to change" in await bare.install()
    assert bare.restarts == 1

    await resumes(own_cluster, *names, pods[1])
    with pytest.raises(CommandFailed, match="delete the pods of the runtime classes"):
        await bare.call("uninstall")
    assert bare.config.read_bytes() != untouched

    await own_cluster.kubectl("delete", "pod", names[1], "--wait=false")
    await own_cluster.wait_gone(names[1])
    await until(bare.is_free, timeout=TIMEOUT)
    assert "restarted containerd" in await bare.call("uninstall")
    assert bare.config.read_bytes() == untouched
    assert not bare.prefix.exists()
    assert "nothing to change" in await bare.call("uninstall")
    assert bare.restarts == 2


async def resumes(cluster: Cluster, first: str, second: str, pod: dict[str, object]) -> None:
    """The second pod goes on where the first one was, by what was installed alone."""
    async with services(cluster) as here:
        folder = await here.checkpoint(first)
        await cluster.kubectl("delete", "pod", first, "--wait=false")
        await cluster.wait_gone(first)
        annotations = {"kybernate.io/restore-from": folder.name}
        await cluster.apply(pod | {"metadata": {"name": second, "annotations": annotations}})
        await cluster.wait_for(second)
        assert loops(await cluster.kubectl("logs", second))[0] > 1


async def refused(cluster: Cluster, pod: str) -> bool:
    """Whether kubelet says that the node has no such runtime."""
    events = await cluster.get("events", f"--field-selector=involvedObject.name={pod}")
    words = 'no runtime for "kybernate" is configured'
    return any(words in event["message"] for event in events["items"])
