"""The test cluster is a real one, and leaves nothing behind."""

import contextlib
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

from kybernate.embedded.kubernetes import cluster as clusters
from kybernate.embedded.kubernetes.cluster import Cluster
from kybernate.embedded.kubernetes.commands import CommandFailed
from kybernate.embedded.kubernetes.waiting import until
from tests.support.cluster_pods import counting_pod, host_files, loops, remains


async def test_every_node_is_ready(own_cluster: Cluster) -> None:
    ready = await own_cluster.kubectl("get", "nodes", "--no-headers")

    assert [line.split()[:2] for line in ready.splitlines()] == [
        [node.name, "Ready"] for node in own_cluster.nodes
    ]


async def test_a_pod_runs_speaks_takes_commands_and_goes(cluster: Cluster, name: str) -> None:
    await cluster.apply(counting_pod(name))
    await cluster.wait_for(name)

    assert await cluster.kubectl("exec", name, "--", "echo", "hello") == "hello\n"
    log = await _log(cluster, name)
    assert loops(log) == list(range(1, len(loops(log)) + 1))

    await cluster.kubectl("delete", "pod", name, "--wait=false")
    await cluster.wait_gone(name)


async def test_the_runtime_class_starts_ordinary_pods_as_usual(
    own_cluster: Cluster, names: tuple[str, str]
) -> None:
    for name, runtime_class in zip(names, ("kybernate", "kybernate-gpu"), strict=True):
        await own_cluster.apply(counting_pod(name, runtime_class=runtime_class))
    for name in names:
        await own_cluster.wait_for(name)

    assert loops(await _log(own_cluster, names[0]))[0] == 1


async def test_pods_of_two_nodes_reach_each_other(
    own_cluster: Cluster, names: tuple[str, str]
) -> None:
    for name, node in zip(names, own_cluster.nodes, strict=False):
        await own_cluster.apply(counting_pod(name, node=node.name))
    one, two = [await own_cluster.wait_for(name) for name in names]

    assert one["spec"]["nodeName"] != two["spec"]["nodeName"]
    address = two["status"]["podIP"]
    pinged = await own_cluster.kubectl("exec", names[0], "--", "ping", "-c1", "-W10", address)
    assert "1 packets received" in pinged


async def test_a_node_keeps_its_files_to_itself(
    own_cluster: Cluster, names: tuple[str, str]
) -> None:
    one, two = own_cluster.node(1), own_cluster.node(2)
    await own_cluster.apply(counting_pod(names[0], node=one.name))
    pod = await own_cluster.wait_for(names[0])

    folder = f"default_{names[0]}_{pod['metadata']['uid']}"
    assert folder in await one.run("ls", "/var/log/pods")
    assert folder not in await two.run("ls", "/var/log/pods")
    assert not (Path("/var/log/pods") / folder).exists()
    assert one.containerd.is_socket()


async def test_pods_run_on_while_containerd_restarts(
    own_cluster: Cluster, names: tuple[str, str]
) -> None:
    node = own_cluster.node(1)
    await own_cluster.apply(counting_pod(names[0], node=node.name))
    before = await own_cluster.wait_for(names[0])

    await node.restart_containerd()

    assert await _said(own_cluster, "exec", names[0], "--", "echo", "hello") == "hello\n"
    assert _containers(await own_cluster.wait_for(names[0])) == _containers(before)


async def test_pods_run_on_while_the_api_server_restarts(
    own_cluster: Cluster, names: tuple[str, str]
) -> None:
    assert own_cluster.control_plane
    await own_cluster.apply(counting_pod(names[0]))
    before = await own_cluster.wait_for(names[0])

    await own_cluster.control_plane.restart_api_server()

    assert _containers(await own_cluster.wait_for(names[0])) == _containers(before)


async def test_a_cluster_survives_kills_and_leaves_nothing_behind() -> None:
    before = host_files()
    folder = Path(tempfile.mkdtemp(prefix="kyc-", dir="/tmp"))
    try:
        started = await clusters.up(folder)
        await started.apply(counting_pod("survivor", node="node-1"))
        pod = await started.wait_for("survivor")
        _kill(folder, "node-1/containerd", "node-1/kubelet", "kube-controller-manager")

        again = await clusters.up(folder)

        assert None not in clusters.status(folder).values()
        assert _containers(await again.wait_for("survivor")) == _containers(pod)
        said = loops(await _log(again, "survivor"))
        assert said == list(range(1, len(said) + 1))
        _kill(folder, "node-1/holder", "node-1/containerd", "etcd", "kube-apiserver")
    finally:
        await clusters.down(folder)

    assert await remains(folder) == []
    assert host_files() == before
    await clusters.down(folder)  # nothing to do is nothing wrong


async def _log(cluster: Cluster, pod: str) -> str:
    """What a pod has said, once it has said something."""
    return await _said(cluster, "logs", pod)


async def _said(cluster: Cluster, *words: str) -> str:
    """What kubectl says, once it says something: a kubelet that has just come back, or whose
    containerd has, knows nothing for a moment.
    """
    told: list[str] = []

    async def is_told() -> bool:
        with contextlib.suppress(CommandFailed):
            told[:] = [await cluster.kubectl(*words)]
        return any(told)

    await until(is_told, timeout=150)
    return told[0]


def _kill(folder: Path, *daemons: str) -> None:
    pids = clusters.status(folder)
    for name in daemons:
        pid = pids[name]
        assert pid is not None, name
        os.kill(pid, signal.SIGKILL)


def _containers(pod: Any) -> list[str]:
    return [status["containerID"] for status in pod["status"]["containerStatuses"]]
