"""A node of the test cluster that knows nothing of Kybernate, for those who install it there."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from kybernate.embedded.kubernetes.cluster import CONTAINERD_LINE
from kybernate.embedded.kubernetes.node import RUNTIME, Node
from kybernate.embedded.stack import find_stack
from kybernate.tasks import end
from tests.support.node_services import PROGRAM

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


@contextlib.asynccontextmanager
async def bare_node(node: Node) -> AsyncIterator[BareNode]:
    """Afterwards it is as all nodes of the test cluster."""
    bare = BareNode(node)
    await bare.make()
    serving = asyncio.create_task(bare.serve())
    try:
        yield bare
    finally:
        await end(serving)
        await bare.undo()
        assert serving.cancelled()
