"""Fixtures for tests on the real stack: NATS, a private containerd, and a whole node.

Each costs about a tenth of a second, so every test has its own. `tests/support/node.py` holds
the same things as context managers, for tests that need two of something.
"""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kybernate.embedded.containerd import PrivateContainerd, private_containerd
from kybernate.embedded.nats_server import NatsServer, nats_server
from kybernate.embedded.stack import find_stack
from kybernate.embedded.workload import Workloads
from node_worker.containerd.client import Containerd, connect

pytest.register_assert_rewrite("tests.support")

from tests.support.node import Node, whole_node  # noqa: E402 - their assertions are to say more


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="ky-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def nats(folder: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(folder / "nats") as server:
        yield server


@pytest.fixture
async def daemon(folder: Path) -> AsyncIterator[PrivateContainerd]:
    async with private_containerd(find_stack(), folder / "containerd") as running:
        yield running


@pytest.fixture
async def runtime(daemon: PrivateContainerd) -> AsyncIterator[Containerd]:
    async with connect(daemon.socket) as client:
        yield client


@pytest.fixture
def workloads(daemon: PrivateContainerd, runtime: Containerd) -> Workloads:
    return Workloads(daemon, runtime)


@pytest.fixture
async def node(folder: Path) -> AsyncIterator[Node]:
    async with whole_node(folder / "node") as running:
        yield running
