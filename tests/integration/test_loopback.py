"""The hook that brings loopback up, on a real network namespace."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from node_worker import loopback

CONNECT = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname(), timeout=5).close()
"""


@pytest.fixture
def namespace() -> Iterator[int]:
    """A process in a network namespace of its own."""
    process = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.kill()
    process.wait()
    process.stdout.close()


def connects(pid: int) -> bool:
    inside = ["nsenter", "--target", str(pid), "--net", sys.executable, "-c", CONNECT]
    return subprocess.run(inside, check=False, timeout=30, capture_output=True).returncode == 0


def hook(state: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", loopback.__file__]
    return subprocess.run(
        command, check=False, timeout=30, capture_output=True, text=True, input=state
    )


def test_loopback_is_up_afterwards(namespace: int) -> None:
    assert not connects(namespace)
    for _ in range(2):
        assert hook(json.dumps({"ociVersion": "1.0.2", "pid": namespace})).returncode == 0
        assert connects(namespace)


def test_a_process_that_is_gone_fails_the_hook() -> None:
    ended = hook(json.dumps({"pid": 2**22 + 1}))
    assert ended.returncode != 0
    assert "No such file" in ended.stderr
