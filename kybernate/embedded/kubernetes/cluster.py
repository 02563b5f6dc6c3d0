"""The whole cluster: brought up and taken down by its folder, and used through `Cluster`.

What is needed to find it again is in <folder>/cluster.json; `down` needs no more than the folder,
and finds what was killed or cut off by marks in environments, cgroups and links.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from kybernate import tasks
from kybernate.embedded import leftovers
from kybernate.embedded.kubernetes import images, network
from kybernate.embedded.kubernetes.assets import find_assets
from kybernate.embedded.kubernetes.commands import TIMEOUT, CommandFailed, Word, run
from kybernate.embedded.kubernetes.control_plane import ControlPlane, Ports, choose_ports
from kybernate.embedded.kubernetes.daemons import Daemon
from kybernate.embedded.kubernetes.network import Network
from kybernate.embedded.kubernetes.node import HANDLERS, HIDDEN, Node, Place
from kybernate.embedded.kubernetes.waiting import POLL_SECONDS, until
from kybernate.embedded.stack import find_stack
from schemas.base import decoder

CONTAINERD_LINE = "1.7"
"""The last one that serves the CRI version which Kubernetes 1.20 speaks."""
PLAN = "cluster.json"
MOST_NODES = 8
READY_TIMEOUT = 120.0
POD_TIMEOUT = 150.0
"""Kubelet 1.20 sometimes takes a minute to drop a pod whose containers have ended."""


class ClusterProblem(Exception):
    """The cluster cannot be brought up or used; the message says why and what to do."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is chosen at the first start and kept."""

    network: Network
    ports: Ports
    nodes: int


class Cluster:
    """Any cluster, by its kubeconfig; one of ours has nodes and a control plane as well."""

    def __init__(
        self,
        kubeconfig: Path,
        kubectl: Path,
        *,
        nodes: Sequence[Node] = (),
        control_plane: ControlPlane | None = None,
    ) -> None:
        self.kubeconfig = kubeconfig
        self.nodes = tuple(nodes)
        self.control_plane = control_plane
        self._kubectl: tuple[Word, ...] = (kubectl, "--kubeconfig", kubeconfig)
        if control_plane is not None:  # what is remembered of it goes with it
            self._kubectl += ("--cache-dir", kubeconfig.parent / ".kube/cache")

    def node(self, number: int) -> Node:
        """By its number, from 1."""
        return self.nodes[number - 1]

    async def kubectl(self, *words: Word, given: str = "", timeout: float = TIMEOUT) -> str:
        """What kubectl says; `given` is its standard input."""
        return await run(*self._kubectl, *words, given=given, timeout=timeout)

    async def get(self, *words: Word) -> Any:
        """A resource, or a list of them under `items`."""
        return json.loads(await self.kubectl("get", *words, "--output", "json"))

    async def apply(self, *resources: Mapping[str, Any]) -> None:
        for resource in resources:
            await self.kubectl("apply", "--filename", "-", given=json.dumps(resource))

    async def wait_for(
        self,
        pod: str,
        phase: str = "Running",
        *,
        namespace: str = "default",
        timeout: float = POD_TIMEOUT,
    ) -> Any:
        """The pod, once it is in that phase."""
        found: Any = None
        try:
            async with asyncio.timeout(timeout):
                while True:
                    found = await self.pod(pod, namespace=namespace)
                    if found is not None and found["status"].get("phase") == phase:
                        return found
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            described = await self.describe(pod, namespace=namespace)
            raise ClusterProblem(f"pod {pod} is not {phase}: {described}") from error

    async def wait_gone(
        self, pod: str, *, namespace: str = "default", timeout: float = POD_TIMEOUT
    ) -> None:
        async def is_gone() -> bool:
            return await self.pod(pod, namespace=namespace) is None

        await until(is_gone, timeout=timeout)

    async def pod(self, name: str, *, namespace: str = "default") -> Any:
        """The pod, or nothing."""
        options = ("--namespace", namespace, "--ignore-not-found", "--output", "json")
        found = await self.kubectl("get", "pod", name, *options)
        return json.loads(found) if found else None

    async def describe(self, pod: str, *, namespace: str = "default") -> str:
        with contextlib.suppress(CommandFailed):  # there is no such pod
            return await self.kubectl("describe", "pod", pod, "--namespace", namespace)
        return "there is no such pod"


def sockets_folder(folder: Path) -> Path:
    """A short path for sockets, whatever the folder's is."""
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()
    return Path("/run") / f"kybernate-cluster-{digest[:10]}"


async def up(folder: Path, nodes: int = 1) -> Cluster:
    """A running cluster with as many nodes; what runs of it already stays."""
    folder = _usable(folder, nodes)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(folder):
        plan = await _plan(folder, nodes)
        cluster = _assemble(folder, plan)
        await _start(folder, plan, cluster)
    return cluster


def attach(folder: Path) -> Cluster:
    """The cluster that was brought up in that folder."""
    folder = folder.resolve()
    if (plan := _read_plan(folder)) is None:
        raise ClusterProblem(f"no cluster was brought up in {folder}; do: make cluster-up")
    return _assemble(folder, plan)


async def down(folder: Path) -> None:
    """End whatever runs of the cluster and remove everything of it, the folder included."""
    folder = folder.resolve()
    if not folder.exists():
        await _remove(folder)
        return
    if not _is_ours(folder):
        raise ClusterProblem(f"{folder} is not empty and holds no cluster; it stays as it is")
    with _alone(folder):
        await _remove(folder)


async def _remove(folder: Path) -> None:
    homes = [folder / "control-plane", *(folder / "nodes" / name for name in _node_names())]
    for home in homes:
        await asyncio.to_thread(leftovers.clear, home)
    if shutil.which("ip") is not None:  # without it there is no link of ours
        await network.remove(folder)
    shutil.rmtree(sockets_folder(folder), ignore_errors=True)
    if folder.exists():
        await asyncio.to_thread(_delete, folder)


def _delete(folder: Path) -> None:
    """The plan last: by it a folder that was deleted in part is known as a cluster's."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == PLAN):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    folder.rmdir()


def status(folder: Path) -> Mapping[str, int | None]:
    """The pid of every daemon, none where it does not run."""
    cluster = attach(folder)
    return {name: daemon.pid for name, daemon in _daemons(cluster)}


@contextlib.asynccontextmanager
async def cluster(folder: Path, nodes: int = 1) -> AsyncIterator[Cluster]:
    """A cluster of its own; nothing of it is left afterwards."""
    try:
        yield await up(folder, nodes)
    finally:
        await tasks.finish(down(folder))


def _daemons(cluster: Cluster) -> Iterator[tuple[str, Daemon]]:
    if cluster.control_plane is not None:
        yield from cluster.control_plane.daemons.items()
    for node in cluster.nodes:
        yield f"{node.name}/holder", node.holder
        if node.holder.pid is not None:
            yield f"{node.name}/containerd", node.containerd_daemon()
            yield f"{node.name}/kubelet", node.kubelet()


def _assemble(folder: Path, plan: Plan) -> Cluster:
    assets = find_assets()
    place = Place(
        folder=folder,
        sockets=sockets_folder(folder),
        network=plan.network,
        assets=assets,
        stack=find_stack(CONTAINERD_LINE),
    )
    return Cluster(
        folder / "kubeconfig",
        assets.program("kubectl"),
        nodes=[Node(place, number) for number in range(1, plan.nodes + 1)],
        control_plane=ControlPlane(folder / "control-plane", assets, plan.network, plan.ports),
    )


async def _start(folder: Path, plan: Plan, cluster: Cluster) -> None:
    if (control_plane := cluster.control_plane) is None:
        raise ClusterProblem("this cluster is not ours to start")
    await control_plane.prepare(_node_names())
    shutil.copy(control_plane.kubeconfig("admin"), cluster.kubeconfig)
    _link(folder / "kubectl", find_assets().program("kubectl"))
    archive = folder / "images.tar"
    await asyncio.to_thread(images.write_archive, archive, find_stack(CONTAINERD_LINE).busybox)
    async with asyncio.TaskGroup() as group:
        group.create_task(control_plane.start())
        for node in cluster.nodes:
            kubeconfig = control_plane.kubeconfig(node.name)
            group.create_task(node.start_containerd(archive, kubeconfig))
    numbers = tuple(node.number for node in cluster.nodes)
    for node in cluster.nodes:
        others = tuple(number for number in numbers if number != node.number)
        await network.connect_pods(plan.network, node.pid, others)
        node.kubelet().start()
    await _usable_by_pods(cluster)


async def _usable_by_pods(cluster: Cluster) -> None:
    """Wait for what a pod needs: runtime classes, a service account, nodes that are ready."""
    await cluster.apply(*map(_runtime_class, HANDLERS))
    try:
        await until(partial(_has_account, cluster), timeout=READY_TIMEOUT)
        await until(partial(_all_ready, cluster), timeout=READY_TIMEOUT)
        for node in cluster.nodes:  # the API server may remember one that was killed as ready
            await until(node.kubelet_listens, timeout=READY_TIMEOUT)
    except TimeoutError as error:
        words = "\n".join(node.kubelet().last_words() for node in cluster.nodes)
        raise ClusterProblem(f"the nodes do not become ready; {words}") from error


async def _has_account(cluster: Cluster) -> bool:
    account = await cluster.kubectl("get", "serviceaccount", "default", "--ignore-not-found")
    return bool(account)


async def _all_ready(cluster: Cluster) -> bool:
    ready = {
        node["metadata"]["name"]
        for node in (await cluster.get("nodes"))["items"]
        for condition in node["status"].get("conditions", ())
        if condition["type"] == "Ready" and condition["status"] == "True"
        if not node["spec"].get("taints")
    }
    return ready >= {node.name for node in cluster.nodes}


def _runtime_class(handler: str) -> dict[str, Any]:
    return {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": handler},
        "handler": handler,
    }


async def _plan(folder: Path, nodes: int) -> Plan:
    if (old := _read_plan(folder)) is not None:
        await network.raise_bridge(old.network, folder)
        plan = msgspec.structs.replace(old, nodes=max(nodes, old.nodes))
    else:
        await network.remove(folder)  # a start that was cut off may have taken one
        chosen = await network.take(folder)
        plan = Plan(network=chosen, ports=choose_ports(chosen), nodes=nodes)
    (folder / PLAN).write_bytes(msgspec.json.encode(plan))
    return plan


def _read_plan(folder: Path) -> Plan | None:
    try:
        return decoder(Plan).decode((folder / PLAN).read_bytes())
    except FileNotFoundError:
        return None


def _node_names() -> tuple[str, ...]:
    return tuple(f"node-{number}" for number in range(1, MOST_NODES + 1))


def _usable(folder: Path, nodes: int) -> Path:
    folder = folder.resolve()
    if not 1 <= nodes <= MOST_NODES:
        raise ClusterProblem(f"{nodes} nodes are not possible; choose 1 to {MOST_NODES}")
    if os.geteuid() != 0:
        raise ClusterProblem("namespaces and containers need root; run this as root")
    if shutil.which("ip") is None:
        raise ClusterProblem("ip is missing: apt-get install iproute2")
    for path in (folder, find_assets().programs.resolve(), find_stack().root.resolve()):
        if any(path.is_relative_to(hidden) for hidden in HIDDEN):
            hidden = ", ".join(map(str, HIDDEN))
            raise ClusterProblem(f"a node does not see {path} (it has its own {hidden}); move it")
    if folder.exists() and not _is_ours(folder):
        raise ClusterProblem(f"{folder} is not empty and holds no cluster; choose another --folder")
    return folder


def _is_ours(folder: Path) -> bool:
    return (folder / PLAN).exists() or not any(folder.iterdir())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ClusterProblem(f"another command works on the cluster in {folder}") from error
    finally:
        os.close(handle)


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)
