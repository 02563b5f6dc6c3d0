"""Folders that cannot be written: a service says so, once and in words, and does nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kybernate.embedded.containerd import PrivateContainerd
from schemas import reasons
from tests.support.mounts import mounted
from tests.support.processes import kybernate, service, url_of


@pytest.fixture
def read_only(folder: Path) -> Iterator[Path]:
    place = folder / "read-only"
    place.mkdir()
    with mounted(place, "-t", "tmpfs", "-o", "ro", "none"):
        yield place


@pytest.fixture
def full(folder: Path) -> Iterator[Path]:
    place = folder / "full"
    place.mkdir()
    with mounted(place, "-t", "tmpfs", "-o", "size=4k", "none"):
        (place / "ballast").write_bytes(b"\xaa" * 4096)
        yield place


@pytest.mark.parametrize(
    ("place", "told"),
    [("read_only", "Read-only file system"), ("full", "No space left on device")],
)
@pytest.mark.parametrize("command", ["worker", "up"])
async def test_a_state_folder_that_cannot_be_written_ends_the_start(
    command: str, place: str, told: str, request: pytest.FixtureRequest
) -> None:
    state: Path = request.getfixturevalue(place)
    output = await kybernate(command, "--state", str(state), "--node", "here")
    assert output.code == 1
    *_, said, advice = output.stderr.splitlines()
    assert said.startswith(f"kybernate: cannot use {state}/{command}.lock: ")
    assert said.endswith(told)
    assert "--state" in advice
    assert "Traceback" not in output.stderr


async def test_checkpoints_that_cannot_be_written_keep_a_node_from_jobs(
    folder: Path, read_only: Path, daemon: PrivateContainerd
) -> None:
    """It serves all the same: something may have to be undone."""
    place = ("--state", str(folder / "up"), "--checkpoints", str(read_only))
    runtime = ("--containerd", str(daemon.socket))
    arguments = ("up", *place, *runtime, "--node", "here", "--listen", "127.0.0.1:0")
    async with service(folder / "up.log", *arguments) as host:
        env = {"KYBERNATE_SERVER": await url_of(host)}
        refused = await kybernate("checkpoint", "counter", env=env)
        described = await kybernate("describe", "node", "here", env=env)
        messages = host.messages()
        assert await host.end() == 0
    assert refused.code == 4
    assert reasons.NODE_NOT_READY in refused.stderr
    assert str(read_only) in refused.stderr
    assert reasons.STORE_UNUSABLE in described.stdout
    [line] = [said for said in messages if said.startswith("node here takes no jobs")]
    assert "Read-only file system" in line
