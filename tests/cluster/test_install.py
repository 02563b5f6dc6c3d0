"""`kybernate node install` on a real node that knew nothing of Kybernate, and the way back."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kybernate.embedded.kubernetes.cluster import CONTAINERD_LINE, Cluster
from kybernate.embedded.kubernetes.commands import CommandFailed
from kybernate.embedded.kubernetes.node import RUNTIME, Node
from kybernate.embedded.kubernetes.waiting import until
from kybernate.embedded.stack import find_stack
from kybernate.tasks import end
from tests.support.cluster_pods import counting_pod, loops
from tests.support.node_services import PROGRAM, NodeServices

NODE = 2
TIMEOUT = 90.0
SYSTEMCTL = """\
#!/bin/sh
case $* in
"is-active --quiet containerd") ;;
"restart containerd") touch {wanted}; while [ -e {wanted} ]; do sleep 0.1; done ;;
*) exit 3 ;;
esac
"""


class BareNode:
    """A node whose containerd has the runtime `runc` alone, with a service manager of a kind."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.config = node.root / "etc/containerd/config.toml"
        self.prefix = node.home / "prefix"
        self.restarts = 0
        self._before = self.config.read_bytes()
        self._wanted = node.home / "restart-wanted"
        self._systemctl = node.home / "bin/systemctl"

    async def make(self) -> None:
        self._systemctl.write_text(SYSTEMCTL.format(wanted=self._wanted))
        self._systemctl.chmod(0o755)
        self.config.write_bytes(self._before.partition(f"[{RUNTIME}.kybernate]".encode())[0])
        await self.node.restart_containerd()

    async def undo(self) -> None:
        self._systemctl.unlink()
        shutil.rmtree(self.prefix, ignore_errors=True)
        self.config.write_bytes(self._before)
        await self.node.restart_containerd()

    async def serve(self) -> None:
        """Restart containerd whenever somebody asks for it."""
        while True:
            if self._wanted.exists():
                await self.node.restart_containerd()
                self.restarts += 1
                self._wanted.unlink()
            await asyncio.sleep(0.1)

    async def call(self, verb: str, *more: str | Path) -> str:
        program = ("--containerd-program", find_stack(CONTAINERD_LINE).containerd)
        return await self.node.run(
            *(PROGRAM, "node", verb, "--prefix", self.prefix, *program, *more)
        )

    async def is_free(self) -> bool:
        """Whether kubelet has removed all that ran by what was installed."""
        tasks = self.node.home / "containerd/state/io.containerd.runtime.v2.task/k8s.io"
        mark = str(self.prefix)
        return not any(mark in file.read_text() for file in tasks.glob("*/options.json"))

    async def install(self) -> str:
        stack = find_stack(CONTAINERD_LINE)
        return await self.call("install", "--runc", stack.runc, "--criu", stack.criu.parents[1])


@pytest.fixture
async def bare(own_cluster: Cluster) -> AsyncIterator[BareNode]:
    bare = BareNode(own_cluster.node(NODE))
    await bare.make()
    serving = asyncio.create_task(bare.serve())
    try:
        yield bare
    finally:
        await end(serving)
        await bare.undo()
        assert serving.cancelled()


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

    await own_cluster.kubectl("delete", "pod", names[1])
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
        await cluster.kubectl("delete", "pod", first)
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
