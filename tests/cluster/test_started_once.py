"""A pod that is checkpointed and ended is never started from its image behind its checkpoint, on a
real node: its program writes a line into a volume whenever it starts, or is asked to end.
"""

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kybernate.embedded.kubernetes.cluster import Cluster
from kybernate.embedded.kubernetes.waiting import until
from tests.support.cluster_pods import IMAGE
from tests.support.node_services import NodeServices
from tests.support.resuming import TIMEOUT, Resources

ROUNDS, AT_ONCE = 3, 4
LONG_ENOUGH_TO_START = 5.0
"""Kubelet looks at its containers every second."""
HOOK = ["sh", "-c", "echo hook >>/volume/lines"]
WRITE = """
trap 'echo asked to end >>/volume/lines' TERM
echo start >>/volume/lines
i=0; while :; do i=$((i + 1)); echo Loop $i; sleep 0.1; done
"""


class Writers:
    """Pods with one volume each, on the host."""

    def __init__(self, services: NodeServices) -> None:
        self.made = Resources(services)
        self._folder = services.node.home / "lines"

    async def started(self, policy: str, *containers: str) -> str:
        """A pod of these containers that has counted."""
        name = f"test-{secrets.token_hex(4)}"
        folder = self._folder / name
        folder.mkdir(parents=True)
        await self.made.apply(self._pod(name, folder, policy, containers))
        for container in containers:
            await self.made.counted(name, container=container)
        return name

    async def lines(self, pod: str) -> list[str]:
        """What was written once the pod is checkpointed and gone."""
        await self.made.checkpoint(pod)
        return self.written(pod)

    def written(self, pod: str) -> list[str]:
        return (self._folder / pod / "lines").read_text().splitlines()

    def _pod(
        self, name: str, folder: Path, policy: str, containers: tuple[str, ...]
    ) -> dict[str, Any]:
        each = {
            "image": IMAGE,
            "command": ["sh", "-c", WRITE],
            "volumeMounts": [{"name": "volume", "mountPath": "/volume"}],
            "lifecycle": {"preStop": {"exec": {"command": HOOK}}},
        }
        spec = {
            "containers": [{"name": container, **each} for container in containers],
            "dnsPolicy": "Default",
            "nodeName": self.made.services.node.name,
            "restartPolicy": policy,
            "volumes": [{"name": "volume", "hostPath": {"path": str(folder)}}],
        }
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest_asyncio.fixture(loop_scope="session")
async def writers(operated: NodeServices) -> AsyncIterator[Writers]:
    writers = Writers(operated)
    yield writers
    await writers.made.all_gone()


async def test_every_pod_starts_once(writers: Writers) -> None:
    async def one() -> list[str]:
        return await writers.lines(await writers.started("Always", "counter"))

    for _ in range(ROUNDS):
        assert await asyncio.gather(*(one() for _ in range(AT_ONCE))) == [["start"]] * AT_ONCE


async def test_all_containers_of_a_pod_start_once(writers: Writers) -> None:
    pod = await writers.started("Always", "one", "two")
    assert await writers.lines(pod) == ["start"] * 2


async def test_a_pod_that_may_not_start_again_is_ended_as_quietly(writers: Writers) -> None:
    assert await writers.lines(await writers.started("Never", "counter")) == ["start"]


async def test_nothing_starts_anew_while_nobody_can_delete_the_pod(
    own_cluster: Cluster, writers: Writers
) -> None:
    """The API server stands still from the dump on, so kubelet hears of no deletion."""
    services = writers.made.services
    pod, before = await writers.started("Always", "counter"), _durable(services)
    ending = asyncio.create_task(writers.lines(pod))
    await until(partial(_is_at_work, services), timeout=TIMEOUT, every=0.005)
    with _standing_still(own_cluster):

        async def is_durable() -> bool:
            return _durable(services) > before

        await until(is_durable, timeout=TIMEOUT)
        await asyncio.sleep(LONG_ENOUGH_TO_START)
        assert writers.written(pod) == ["start"]
    assert await ending == ["start"]


@contextlib.contextmanager
def _standing_still(cluster: Cluster) -> Iterator[None]:
    """Its API server."""
    assert cluster.control_plane
    pid = cluster.control_plane.daemons["kube-apiserver"].pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def _is_at_work(services: NodeServices) -> bool:
    return any((services.checkpoints / ".aside").iterdir())


@pytest.mark.parametrize("moment", ["durable", "deleted"])
async def test_who_is_killed_meanwhile_ends_the_pod_afterwards(
    writers: Writers, moment: str
) -> None:
    services = writers.made.services
    pod, before = await writers.started("Always", "counter"), _durable(services)

    async def has_come() -> bool:
        if moment == "durable":
            return _durable(services) > before
        return "deletionTimestamp" in (await services.cluster.pod(pod))["metadata"]

    ending = asyncio.create_task(writers.lines(pod))
    await until(has_come, timeout=TIMEOUT, every=0.02)
    await services.killed()
    await services.start()
    assert await ending == ["start"]


def _durable(services: NodeServices) -> int:
    return len(list(services.checkpoints.glob("*/manifest.json")))
