"""Kybernate on a node of the test cluster, all of it in the namespaces of that node."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from kybernate.embedded.kubernetes.cluster import Cluster
from kybernate.embedded.kubernetes.commands import Word
from kybernate.embedded.kubernetes.daemons import Daemon
from kybernate.embedded.kubernetes.node import Node
from kybernate.embedded.kubernetes.waiting import until

PROGRAM = Path(sys.executable).with_name("kybernate")
START_TIMEOUT = 150.0


class NodeServices:
    """NATS, controller and worker of one node, which brings pods' containers back."""

    def __init__(self, cluster: Cluster, number: int = 1, *more: Word) -> None:
        """`more`: options of `kybernate up`."""
        self.cluster = cluster
        self.node: Node = cluster.node(number)
        self.state = self.node.home / "kybernate"
        self.checkpoints = self.state / "checkpoints"
        self.runtime_state = self.node.root / "run/kybernate"
        self._daemon = Daemon(
            name="services",
            home=self.node.home,
            command=self.node.inside(
                *(PROGRAM, "up", "--pods", "--state", self.state, "--node", self.node.name),
                *("--containerd", "/run/containerd/containerd.sock", *more),
            ),
            env=self.node.environment,
        )

    async def start(self) -> None:
        await asyncio.to_thread(self._daemon.start)
        try:
            await until(self._answers, timeout=START_TIMEOUT)
        except TimeoutError as error:
            words = self._daemon.last_words()
            await self.killed()
            raise AssertionError(words) from error

    async def stop(self) -> None:
        await self._daemon.stop()

    async def killed(self) -> None:
        """All of it at once, without a chance to put anything in order."""
        await self._daemon.stop(signal.SIGKILL)

    async def checkpoint(self, pod: str, namespace: str = "default") -> Path:
        """Checkpoint the pod's container, which runs on; the checkpoint's folder."""
        found = await self.cluster.pod(pod, namespace=namespace)
        container = container_of(found)
        said = await self.node.run(
            *(PROGRAM, "checkpoint", container, "--namespace", "k8s.io", "--leave-running")
        )
        return self.checkpoints / said.split()[0]

    async def pid(self, pod: str, name: str = "") -> int:
        """Of the first process of the pod's container, or of the one of that name."""
        container = container_of(await self.cluster.pod(pod), name)
        tasks = self.node.home / "containerd/state/io.containerd.runtime.v2.task/k8s.io"
        return int((tasks / container / "init.pid").read_text())

    def leftovers(self) -> list[str]:
        """What lies around of restores that are over."""
        places = [
            self.state / "worker/pods",
            self.checkpoints / ".aside",
            self.runtime_state / "answers",
        ]
        return [str(path) for place in places if place.exists() for path in place.iterdir()]

    def restored(self) -> list[str]:
        """The containers that were restored and are there still."""
        return [path.name for path in (self.runtime_state / "restored").iterdir()]

    async def _answers(self) -> bool:
        return (self.runtime_state / "worker.pid").exists()


def container_of(pod: Any, name: str = "") -> str:
    """containerd's id of its one container, or of the one of that name."""
    statuses = pod["status"]["containerStatuses"]
    status = next(one for one in statuses if name in {"", one["name"]})
    return str(status["containerID"]).removeprefix("containerd://")
