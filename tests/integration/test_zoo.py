"""Real workloads go round: checkpointed, killed, resumed, and each proves its own state.

The animals are in `zoo/`; each is asked for its proof before and after.
"""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.node import Node, whole_node
from tests.support.zoo import ANYBODY, ZOO, animal, proof

ANIMALS = (
    "deleted_file",
    "descriptors_over_a_socket",
    "epoll_and_eventfd",
    "few_capabilities",
    "file_locks",
    "inotify",
    "inotify_on_tmpfs",
    "limits_and_surroundings",
    "mapped_files",
    "memory_file",
    "named_pipe",
    "not_root",
    "one_gibibyte",
    "pending_signal",
    "pipe_in_flight",
    "process_tree",
    "pseudo_terminal",
    "replaced_file",
    "root_filesystem",
    "sessions_and_groups",
    "shared_memory",
    "signal_descriptor",
    "sysv_shared_memory",
    "tcp_loopback",
    "threads",
    "timerfd",
    "timers",
    "tmpfs",
    "udp_loopback",
    "unix_sockets",
    "waiting_in_system_calls",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[Node]:
    with tempfile.TemporaryDirectory(prefix="ky-", dir="/tmp") as folder:
        async with whole_node(Path(folder)) as running:
            yield running


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ANIMALS)
async def test_it_goes_round_and_proves_its_state(node: Node, name: str) -> None:
    await goes_round(node, name)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["not_root", "threads", "unix_sockets"])
async def test_another_user_goes_round_in_a_user_namespace(node: Node, name: str) -> None:
    await goes_round(node, name, user=ANYBODY, capabilities=(), user_namespace=True)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["process_tree", "pseudo_terminal", "threads", "unix_sockets"])
async def test_another_user_goes_round_without_a_user_namespace(node: Node, name: str) -> None:
    await goes_round(node, name, user=ANYBODY, capabilities=())


async def goes_round(node: Node, name: str, **surroundings: object) -> None:
    async with animal(node, name, **surroundings) as running:
        assert await proof(node, running, 1) == f"proof 1 {name}: OK"
        checkpoint = await node.checkpoint(name)
        await node.restore(checkpoint.id)
        assert await proof(node, running, 2) == f"proof 2 {name}: OK"


def test_no_animal_is_forgotten() -> None:
    files = (ZOO / f"{kind}.py" for kind in ("connections", "processes", "storage", "waiting"))
    lines = "\n".join(file.read_text() for file in files).splitlines()
    places = [number for number, line in enumerate(lines) if line == "@animal"]
    names = {lines[number + 1].removeprefix("def ").partition("(")[0] for number in places}
    assert names == {*ANIMALS, "outside_connection"}
