"""Pods of one node that resume from checkpoints, as tests make them and look at them; by their
annotation, or by custom resources.
"""

import secrets
from pathlib import Path
from typing import Any

from kybernate.embedded.kubernetes.waiting import until
from schemas.kubernetes import API_VERSION
from tests.support.cluster_pods import counting_pod, loops
from tests.support.node_services import NodeServices

TIMEOUT = 150.0


class Pods:
    """Makes pods on the node of the services, and deletes them."""

    def __init__(self, services: NodeServices) -> None:
        self.services = services
        self.cluster = services.cluster
        self._names: list[str] = []

    async def make(
        self, source: str | Path = "", *, container: str = "counter", **more: str
    ) -> str:
        name = f"test-{secrets.token_hex(4)}"
        node = self.services.node.name
        pod = counting_pod(name, node=node, runtime_class="kybernate")
        annotations = {f"kybernate.io/{key}": value for key, value in more.items()}
        if source:
            annotations["kybernate.io/restore-from"] = str(source)
        pod["metadata"]["annotations"] = annotations
        pod["spec"]["containers"][0]["name"] = container
        return await self.apply(pod)

    async def apply(self, pod: dict[str, Any]) -> str:
        """Make it; it is deleted after the test."""
        name = str(pod["metadata"]["name"])
        self._names.append(name)
        await self.cluster.apply(pod)
        return name

    async def counted(self, pod: str, times: int = 3, *, container: str = "") -> list[int]:
        """What it, or that container of it, has counted since it was made, once that is enough."""
        found: list[int] = []
        chosen = ("-c", container) if container else ()

        async def is_enough() -> bool:
            found[:] = loops(await self.cluster.kubectl("logs", pod, *chosen))
            return len(found) >= times

        await self.cluster.wait_for(pod)
        await until(is_enough, timeout=TIMEOUT)
        return found

    async def refusal(self, pod: str) -> str:
        """Why its container could not be made, as kubelet's event says it."""
        found: list[str] = []

        async def is_told() -> bool:
            events = await self.cluster.get(
                "events", f"--field-selector=involvedObject.name={pod},reason=Failed"
            )
            found[:] = [event["message"] for event in events["items"]]
            return bool(found)

        await until(is_told, timeout=TIMEOUT)
        return found[0]

    async def gone(self, *pods: str) -> None:
        await self.cluster.kubectl("delete", "pod", *pods, "--ignore-not-found", "--wait=false")
        for pod in pods:
            await self.cluster.wait_gone(pod)

    async def all_gone(self) -> None:
        if self._names:
            await self.gone(*self._names)


class Resources(Pods):
    """The same with custom resources, for services that run with --kubernetes."""

    def __init__(self, services: NodeServices) -> None:
        super().__init__(services)
        self._resources: list[str] = []

    async def checkpoint(self, pod: str, **spec: str) -> str:
        """The checkpoint's id; the pod is gone then."""
        status = await self._asked("KybernateCheckpoint", pod, "Completed", podName=pod, **spec)
        await self.cluster.wait_gone(pod)
        return str(status["checkpointRef"])

    async def restore(self, checkpoint: str) -> str:
        """The pod that goes on, once it runs."""
        name = f"test-{secrets.token_hex(4)}"
        status = await self._asked("KybernateRestore", name, "Running", checkpointRef=checkpoint)
        self._names.append(str(status["restoredPodName"]))
        return self._names[-1]

    async def refused(self, pod: str) -> str:
        """Why it is not checkpointed; it runs on."""
        status = await self._asked("KybernateCheckpoint", pod, "Failed", podName=pod)
        await self.cluster.wait_for(pod)
        return stalled(status)["message"]

    async def not_restored(self, checkpoint: str) -> dict[str, str]:
        """The condition that says why not; its pod is gone then."""
        name = f"test-{secrets.token_hex(4)}"
        status = await self._asked("KybernateRestore", name, "Failed", checkpointRef=checkpoint)
        await self.cluster.wait_gone(str(status["restoredPodName"]))
        return stalled(status)

    async def all_gone(self) -> None:
        await super().all_gone()
        for name in self._resources:
            await self.cluster.kubectl("delete", "kyr,kyc", name, "--ignore-not-found")

    async def _asked(self, kind: str, name: str, phase: str, **spec: str) -> Any:
        """The status of a new resource, once it is in that phase."""
        self._resources.append(name)
        metadata = {"name": name}
        await self.cluster.apply(
            {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
        )
        status: dict[str, Any] = {}

        async def has_ended() -> bool:
            status.update((await self.cluster.get(kind, name)).get("status", {}))
            return status.get("phase") in {phase, "Completed", "Running", "Failed"}

        await until(has_ended, timeout=TIMEOUT)
        assert status["phase"] == phase, status
        return status


def stalled(status: Any) -> dict[str, str]:
    """The condition that says why nothing more happens."""
    return next(one for one in status["conditions"] if one["type"] == "Stalled")
