"""`kubectl apply -k deploy`: everything of Kybernate in pods of the cluster, as its manifests say.

The image is made of what runs here. Two things are the test cluster's own: it has no service
addresses, and its nodes keep containerd's files in their own folders.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kybernate.embedded.kubernetes.cluster import CONTAINERD_LINE, Cluster
from kybernate.embedded.kubernetes.commands import run
from kybernate.embedded.stack import find_stack
from tests.cluster.test_cycle_script import SCRIPT, environment
from tests.support import product_image
from tests.support.bare_node import BareNode, bare_node
from tests.support.controllers import until
from tests.support.kube_world import DEPLOY
from tests.support.node_services import PROGRAM

NODE = 2
SPACE = ("--namespace", "kybernate")
Objects = dict[str, Any]


@pytest.fixture
async def bare(own_cluster: Cluster, folder: Path) -> AsyncIterator[BareNode]:
    """A node that has nothing of Kybernate but its image."""
    stack, archive = find_stack(CONTAINERD_LINE), folder / "image.tar"
    await asyncio.to_thread(product_image.make, archive, stack, folder)
    async with bare_node(own_cluster.node(NODE)) as made:
        ctr = ("ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io")
        await made.node.run(*ctr, "images", "import", archive)
        yield made


@pytest.fixture
async def objects(own_cluster: Cluster, account: Path) -> AsyncIterator[Objects]:
    """What `deploy` holds, by kind and name; what of it runs is gone after the test."""
    said = await own_cluster.kubectl(
        "apply", "--kustomize", DEPLOY, "--dry-run=client", "--output", "json"
    )
    found = {f"{one['kind']}/{one['metadata']['name']}": one for one in json.loads(said)["items"]}
    yield found
    await own_cluster.kubectl(
        *("delete", "--filename", DEPLOY / "workloads", "--ignore-not-found"),
        *("--cascade=foreground", "--timeout=150s"),  # so it ends when their pods have gone
        timeout=160,
    )


async def test_the_api_server_accepts_all_of_it(own_cluster: Cluster, objects: Objects) -> None:
    said = await own_cluster.kubectl("apply", "--kustomize", DEPLOY, "--dry-run=server")

    assert len(said.splitlines()) == len(objects)


async def test_all_of_it_runs_in_pods_and_goes_the_whole_cycle(
    own_cluster: Cluster, bare: BareNode, objects: Objects
) -> None:
    for name in ("Deployment/kybernate-nats", "DaemonSet/kybernate-installer"):
        await start(own_cluster, adapted(own_cluster, objects[name], bare))
    await bare.node.restart_containerd()
    nats = await address_of(own_cluster, "nats")
    for name in ("Deployment/kybernate-controller", "DaemonSet/kybernate-worker"):
        await start(own_cluster, adapted(own_cluster, objects[name], bare, nats=nats))

    await until(lambda: nodes_by_port_forward(own_cluster), [bare.node.name].__eq__, every=0.5)
    shell = environment(own_cluster, NODE=bare.node.name)
    said = await run(SCRIPT, env=shell, timeout=400)

    assert "cycle: OK, counter" in said.splitlines()[-1]


async def nodes_by_port_forward(cluster: Cluster) -> list[str]:
    """What `kybernate get nodes` says to somebody outside of the cluster."""
    forward = ("port-forward", *SPACE, "deployment/kybernate-controller", ":7474")
    process = await asyncio.create_subprocess_exec(
        *(cluster.kubeconfig.with_name("kubectl"), *forward),
        env=environment(cluster),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    try:
        told = (await process.stdout.readline()).decode()
        server = "http://" + told.removeprefix("Forwarding from ").partition(" ")[0]
        said = await run(PROGRAM, "get", "nodes", "--server", server, "--output", "json")
    finally:
        process.terminate()
        await process.wait()
    return [node["node"] for node in json.loads(said)]


async def start(cluster: Cluster, workload: Any) -> None:
    await cluster.apply(workload)
    name = f"{workload['kind']}/{workload['metadata']['name']}"
    await cluster.kubectl("rollout", "status", name, *SPACE, "--timeout=150s", timeout=160)


async def address_of(cluster: Cluster, component: str) -> str:
    label = f"app.kubernetes.io/component={component}"
    (pod,) = (await cluster.get("pods", *SPACE, "--selector", label))["items"]
    return str(pod["status"]["podIP"])


def adapted(cluster: Cluster, workload: Any, bare: BareNode, *, nats: str = "") -> Any:
    """The workload on that node, with what differs in this cluster."""
    if "replicas" in workload["spec"]:
        workload["spec"]["replicas"] = 1  # each compiles all of its modules at its start
    spec = workload["spec"]["template"]["spec"]
    spec["nodeSelector"] = {"kubernetes.io/hostname": bare.node.name}
    spec["dnsPolicy"] = "Default"
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        container["image"] = product_image.NAME
        _set(container, "KYBERNATE_NATS", f"nats://{nats}:4222")
        if spec.get("serviceAccountName"):
            _set_api_server(container, cluster)
        if container["name"] == "install":
            container["args"] += ["--no-restart", *_paths(bare)]
    for volume in spec.get("volumes", ()):
        if volume["name"] == "containerd":
            volume["hostPath"]["path"] = str(bare.node.home)
            _mount(spec, "containerd")["mountPath"] = str(bare.node.home)
    return workload


def _paths(bare: BareNode) -> list[str]:
    stack = find_stack(CONTAINERD_LINE)
    options = {
        "--prefix": bare.prefix,
        "--runc": stack.runc,
        "--containerd-program": stack.containerd,
    }
    return [str(word) for pair in options.items() for word in pair]


def _set_api_server(container: Any, cluster: Cluster) -> None:
    assert cluster.control_plane
    server = urlsplit(cluster.control_plane.url)
    _set(container, "KUBERNETES_SERVICE_HOST", str(server.hostname))
    _set(container, "KUBERNETES_SERVICE_PORT", str(server.port))


def _set(container: Any, name: str, value: str) -> None:
    others = [one for one in container.get("env", ()) if one["name"] != name]
    container["env"] = [*others, {"name": name, "value": value}]


def _mount(spec: Any, name: str) -> Any:
    (found,) = [one for one in spec["containers"][0]["volumeMounts"] if one["name"] == name]
    return found
