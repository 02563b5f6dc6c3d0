"""Each test process has one cluster for all of its tests here: a fresh one, or the one of
KYBERNATE_TEST_KUBECONFIG, which one process has for itself.

With `make cluster-up` done, KYBERNATE_TEST_KUBECONFIG=.cluster/kubeconfig saves its start. A
cluster that is not ours also needs an image with a shell in KYBERNATE_TEST_IMAGE; tests that look
into nodes bring up one of ours beside it.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kybernate.embedded.kubernetes import cluster as clusters
from kybernate.embedded.kubernetes.cluster import Cluster
from tests.support import kube_world
from tests.support.cluster_pods import remains
from tests.support.node_services import NodeServices

NODES = 2


def pytest_itemcollected(item: pytest.Item) -> None:
    """A module goes to one process, as its tests share what they run on. The first test waits for
    the cluster's start, and each for several things that kubelet does in its own time.
    """
    item.add_marker(pytest.mark.xdist_group("cluster" if _given() else item.path.stem))
    item.add_marker(pytest.mark.timeout(900))


@contextlib.asynccontextmanager
async def fresh_cluster(nodes: int = NODES) -> AsyncIterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="kyc-", dir="/tmp"))
    async with clusters.cluster(folder, nodes) as running:
        yield running
    assert await remains(folder) == []


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster() -> AsyncIterator[Cluster]:
    """Any cluster: through kubectl only."""
    if given := _given():
        yield _existing(Path(given).absolute())
        return
    async with fresh_cluster() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def own_cluster(cluster: Cluster) -> AsyncIterator[Cluster]:
    """One of ours, with nodes to look into."""
    if len(cluster.nodes) >= NODES:
        yield cluster
        return
    async with fresh_cluster() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kubeconfig(cluster: Cluster) -> AsyncIterator[Path]:
    """The controllers' own, with the roles that they are given in `deploy/base`."""
    async with _account(cluster) as file:
        yield file


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def account(cluster: Cluster, own_cluster: Cluster, kubeconfig: Path) -> AsyncIterator[Path]:
    """The same for our own cluster."""
    if own_cluster is cluster:
        yield kubeconfig
        return
    async with _account(own_cluster) as file:
        yield file


@pytest.fixture
async def name(cluster: Cluster) -> AsyncIterator[str]:
    """For a pod that is deleted after the test, if it was made."""
    name = f"test-{secrets.token_hex(4)}"
    yield name
    await cluster.kubectl("delete", "pod", name, "--ignore-not-found", "--wait=false")


@pytest.fixture
async def names(own_cluster: Cluster) -> AsyncIterator[tuple[str, str]]:
    """The same for two pods of our own cluster."""
    names = (f"test-{secrets.token_hex(4)}", f"test-{secrets.token_hex(4)}")
    yield names
    await own_cluster.kubectl("delete", "pod", *names, "--ignore-not-found", "--wait=false")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def operated(own_cluster: Cluster, account: Path) -> AsyncIterator[NodeServices]:
    """Kybernate with its custom resources, on the second node. For a module: two of them that do
    not share a bus cannot be beside each other.
    """
    services = NodeServices(own_cluster, NODES, "--kubernetes", "--kubeconfig", account)
    await services.start()
    yield services
    await services.stop()
    shutil.rmtree(services.state)


@contextlib.asynccontextmanager
async def _account(cluster: Cluster) -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ky-") as folder:
        yield await kube_world.install(cluster, Path(folder))


def _given() -> str:
    return os.environ.get("KYBERNATE_TEST_KUBECONFIG", "")


def _existing(kubeconfig: Path) -> Cluster:
    if (kubeconfig.parent / "cluster.json").exists():
        return clusters.attach(kubeconfig.parent)
    kubectl = shutil.which("kubectl")
    assert kubectl, "kubectl is not in PATH"
    return Cluster(kubeconfig, Path(kubectl))
