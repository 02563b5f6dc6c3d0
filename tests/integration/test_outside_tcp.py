"""A container's TCP connection to a peer outside of it: refused, or closed when it resumes."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from kybernate.embedded.workload import NAMESPACE, Running
from node_worker.containerd.port import TaskStatus
from schemas import reasons
from schemas.orders import OutsideTcp
from tests.support.counting import checkpoint_of, failure
from tests.support.node import Node
from tests.support.zoo import ENV, animal, proof


def address_of_this_host() -> str:
    """One that is not the loopback's; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


class Peer:
    """Listens outside of the container; knows what it was told and whether that has ended."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard = b""
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionResetError):  # an end as good as any
            while said := await reader.read(64):
                self.heard += said
        self.ended.set()
        writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Peer]:
    host = address_of_this_host()
    peer = Peer("")
    server = await asyncio.start_server(peer.serve, host, 0)
    peer.address = f"{host}:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield peer


@asynccontextmanager
async def connected(node: Node, peer: Peer) -> AsyncIterator[Running]:
    env = {**ENV, "PEER": peer.address}
    async with animal(node, "outside_connection", env=env, host_network=True) as running:
        yield running


async def test_it_is_refused_if_it_must_not_be_lost(node: Node) -> None:
    async with listening() as peer, connected(node, peer) as running:
        request = msgspec.structs.replace(checkpoint_of(running), outside_tcp=OutsideTcp.REFUSE)
        why = await failure(node, request)
        assert why.reason == reasons.OUTSIDE_CONNECTION
        assert f"→ {peer.address}" in why.message
        assert "outside TCP: close" in why.advice
        assert (await node.runtime.task(NAMESPACE, running.id)).status is TaskStatus.RUNNING
        assert not peer.ended.is_set()


@pytest.mark.parametrize("leave_running", [False, True])
async def test_it_is_closed_when_the_container_resumes(node: Node, leave_running: bool) -> None:  # noqa: FBT001
    async with listening() as peer, connected(node, peer) as running:
        checkpoint = await node.checkpoint(running.id, leave_running=leave_running)
        if leave_running:
            assert not peer.ended.is_set()
            await running.kill()
        await node.restore(checkpoint.id)
        assert await proof(node, running, 1) == "proof 1 outside_connection: OK"
        async with asyncio.timeout(60):
            await peer.ended.wait()
        assert peer.heard == b"before\n"
