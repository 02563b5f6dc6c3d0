"""A whole node for tests: NATS, a private containerd, controller and worker in this process, and
what a test does with them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kybernate.client import Client, client
from kybernate.embedded.containerd import PrivateContainerd
from kybernate.embedded.host import HostSettings, all_in_one
from kybernate.embedded.workload import NAMESPACE, Workloads
from node_worker.containerd.client import Containerd, connect
from schemas.actions import Action, ActionState
from schemas.manifest import CheckpointFacts
from schemas.messages import Checkpointed, Restored
from schemas.requests import CheckpointRequest, Request, RestoreRequest

NODE = "one"


class Node:
    """What runs, and the ordinary requests."""

    def __init__(
        self,
        url: str,
        folder: Path,
        daemon: PrivateContainerd,
        runtime: Containerd,
        client: Client,
    ) -> None:
        self.url = url
        self.folder = folder
        self.daemon = daemon
        self.runtime = runtime
        self.workloads = Workloads(daemon, runtime)
        self.client = client

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    async def ended(self, request: Request) -> Action:
        """The request's action once it has ended, however it ended."""
        return await self.client.ended((await self.client.request(request)).id)

    async def checkpoint(self, container: str, *, leave_running: bool = False) -> CheckpointFacts:
        """The container's checkpoint; an AssertionError with the failure if there is none."""
        request = CheckpointRequest(
            container=container, namespace=NAMESPACE, leave_running=leave_running
        )
        result = (await self.completed(request)).result
        assert isinstance(result, Checkpointed)
        return result.checkpoint

    async def restore(self, checkpoint: str, *, name: str | None = None) -> Restored:
        result = (await self.completed(RestoreRequest(checkpoint=checkpoint, name=name))).result
        assert isinstance(result, Restored)
        return result

    async def completed(self, request: Request) -> Action:
        action = await self.ended(request)
        assert action.state is ActionState.COMPLETED, action.failure
        return action


@asynccontextmanager
async def whole_node(folder: Path) -> AsyncIterator[Node]:
    settings = HostSettings(folder=folder, node=NODE, listen="127.0.0.1:0")
    async with (
        all_in_one(settings) as host,
        connect(host.containerd) as runtime,
        client((host.url,)) as rest,
    ):
        assert host.daemon is not None
        yield Node(host.url, folder, host.daemon, runtime, rest)
