"""What becomes of calls whose answer containerd loses: shown on a server that does so at will."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from node_worker.containerd.client import Containerd, connect
from node_worker.containerd.port import RuntimeUnavailable
from node_worker.containerd.proto import catalogue_pb2

METHODS = {
    "containerd.services.version.v1.Version": "Version",
    "containerd.services.containers.v1.Containers": "Delete",
}
LOST = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED]


class Forgetful:
    """Answers calls with its version, once it has lost as many answers as it is to."""

    def __init__(self) -> None:
        self.asked = 0
        self.losses: list[grpc.StatusCode] = []

    async def answer(self, _: bytes, context: Any) -> bytes:
        self.asked += 1
        if self.losses:
            await context.abort(self.losses.pop(0), "lost")
        return catalogue_pb2.VersionResponse(version="2").SerializeToString()


@pytest.fixture
def server() -> Forgetful:
    return Forgetful()


@pytest.fixture
async def containerd(server: Forgetful, folder: Path) -> AsyncIterator[Containerd]:
    answer = grpc.unary_unary_rpc_method_handler(server.answer)
    running = grpc.aio.server()
    for service, method in METHODS.items():
        handlers = grpc.method_handlers_generic_handler(service, {method: answer})
        running.add_generic_rpc_handlers((handlers,))
    running.add_insecure_port(f"unix://{folder}/socket")
    await running.start()
    async with connect(folder / "socket") as client:
        yield client
    await running.stop(None)


@pytest.mark.parametrize("loss", LOST)
async def test_what_only_reads_is_asked_again(
    server: Forgetful, containerd: Containerd, loss: grpc.StatusCode
) -> None:
    server.losses = [loss]
    assert await containerd.version() == "2"
    assert server.asked == 2


async def test_it_is_asked_again_only_once(server: Forgetful, containerd: Containerd) -> None:
    server.losses = LOST * 2
    with pytest.raises(RuntimeUnavailable):
        await containerd.version()
    assert server.asked == 2


@pytest.mark.parametrize("loss", LOST)
async def test_what_changes_something_may_have_happened_and_is_asked_once(
    server: Forgetful, containerd: Containerd, loss: grpc.StatusCode
) -> None:
    server.losses = [loss]
    with pytest.raises(RuntimeUnavailable):
        await containerd.delete_container("namespace", "container")
    assert server.asked == 1
