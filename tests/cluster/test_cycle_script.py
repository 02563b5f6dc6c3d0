"""`examples/cycle.sh`: the whole cycle as a user runs it, with kubectl and kybernate-ctl alone."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kybernate.embedded.kubernetes.cluster import Cluster
from kybernate.embedded.kubernetes.commands import CommandFailed, run
from tests.support.cluster_pods import IMAGE
from tests.support.node_services import PROGRAM, NodeServices

NODE = 1
SCRIPT = Path(__file__).parents[2] / "examples/cycle.sh"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def services(own_cluster: Cluster, account: Path) -> AsyncIterator[NodeServices]:
    services = NodeServices(own_cluster, NODE, "--kubernetes", "--kubeconfig", account)
    await services.start()
    yield services
    await services.stop()


def environment(cluster: Cluster, **more: str) -> dict[str, str]:
    """Of a user's shell."""
    path = (cluster.kubeconfig.parent, PROGRAM.parent, os.environ["PATH"])
    return {
        "HOME": str(cluster.kubeconfig.parent),
        "KUBECONFIG": str(cluster.kubeconfig),
        "PATH": ":".join(map(str, path)),
        "IMAGE": IMAGE,
        **more,
    }


async def test_a_user_goes_the_whole_cycle(services: NodeServices) -> None:
    cluster = services.cluster
    said = await run(SCRIPT, env=environment(cluster, NODE=services.node.name), timeout=400)

    assert "cycle: OK, counter" in said.splitlines()[-1]
    assert not list(services.checkpoints.glob("*-*"))
    pods = await cluster.get("pods", "--selector", "kybernate.io/example=cycle")
    assert pods["items"] == []


async def test_what_goes_wrong_ends_the_script_with_words(services: NodeServices) -> None:
    cluster, other = services.cluster, {"NODE": services.node.name, "KYBERNATE": "false"}
    with pytest.raises(CommandFailed) as failure:
        await run(SCRIPT, env=environment(cluster, **other), timeout=400)

    assert "cycle: false says" in failure.value.stderr
    pods = await cluster.get("pods", "--selector", "kybernate.io/example=cycle")
    assert pods["items"] == []


async def test_a_pod_that_there_is_not_is_refused(services: NodeServices) -> None:
    cluster = services.cluster
    words = ("checkpoint", "--pod", "missing", "--kubeconfig", cluster.kubeconfig)
    with pytest.raises(CommandFailed) as failure:
        await run(PROGRAM, *words)

    assert failure.value.code == 4
    assert "there is no pod missing in namespace default" in failure.value.stderr
    assert (await cluster.get("kybernatecheckpoints"))["items"] == []
