"""Pods for the tests on a cluster, and what is left of a cluster on its host."""

import os
from pathlib import Path
from typing import Any

from kybernate.embedded import leftovers
from kybernate.embedded.kubernetes.cluster import MOST_NODES, sockets_folder
from kybernate.embedded.kubernetes.images import BUSYBOX
from kybernate.embedded.kubernetes.network import links

IMAGE = os.environ.get("KYBERNATE_TEST_IMAGE", BUSYBOX)
COUNT = "i=0; while :; do i=$((i + 1)); echo Loop $i; sleep 0.2; done"
HOST_FOLDERS = (
    *("/etc/cni", "/etc/containerd", "/etc/criu", "/etc/kubernetes"),
    *("/opt/cni", "/opt/containerd", "/run/kybernate", "/run/netns", "/usr/libexec/kubernetes"),
    *("/var/lib/cni", "/var/lib/kubelet", "/var/lib/kybernate"),
    *("/var/log/containers", "/var/log/pods"),
)


def counting_pod(name: str, *, node: str = "", runtime_class: str = "") -> dict[str, Any]:
    """A pod that counts aloud, and that goes at once when it is deleted."""
    container = {"name": "counter", "image": IMAGE, "command": ["sh", "-c", COUNT]}
    spec: dict[str, Any] = {
        "containers": [container],
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 0,
    }
    if node:
        spec["nodeName"] = node
    if runtime_class:
        spec["runtimeClassName"] = runtime_class
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def loops(log: str) -> list[int]:
    """The numbers that a counting pod has said; kubelet's own words may be among them."""
    lines = (line for line in log.splitlines() if line.startswith("Loop "))
    return [int(line.removeprefix("Loop ")) for line in lines]


def host_files() -> dict[str, list[str]]:
    """What lies in the folders of the host that Kubernetes usually writes to."""
    folders = [Path(name) for name in HOST_FOLDERS]
    return {
        str(folder): sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ["none"]
        for folder in folders
    }


async def remains(folder: Path) -> list[str]:
    """Whatever of the cluster in that folder can still be found on this machine."""
    homes = [folder / "control-plane", *_node_homes(folder)]
    cgroups = {leftovers.cgroup_parent(home).removeprefix("/") for home in homes}
    found = [f"process {pid}" for home in homes for pid in leftovers.processes(home)]
    found += [f"link {name}" for name in await links(folder)]
    found += [f"cgroup {path}" for path in leftovers.CGROUPS.glob("*/*") if path.name in cgroups]
    found += [f"folder {path}" for path in (folder, sockets_folder(folder)) if path.exists()]
    return found + _mentioned_mounts(folder)


def _node_homes(folder: Path) -> list[Path]:
    return [folder / "nodes" / f"node-{number}" for number in range(1, MOST_NODES + 1)]


def _mentioned_mounts(folder: Path) -> list[str]:
    """Mounts of it in any mount namespace: each belongs to some process."""
    places = {str(folder), str(sockets_folder(folder))}
    return [
        f"mount {line}"
        for process in Path("/proc").glob("[0-9]*/mountinfo")
        for line in _lines(process)
        if any(place in line for place in places)
    ]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # the process has ended
        return []
