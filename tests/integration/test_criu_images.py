"""Connections through a real dump and a real restore into another network."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kybernate.embedded.stack import find_stack
from node_worker.criu_images import connections, copy_changed, processes
from tests.support import connected_workload

NETWORK = "workload"
NEW_NETWORK = 0x40000000


def criu(verb: str, images: Path, work: Path, *options: str, inherited: int | None = None) -> None:
    work.mkdir(exist_ok=True)
    common = ["--tcp-established", "--network-lock", "skip", "-o", f"{verb}.log", "-v4"]
    program = str(find_stack().criu)
    arguments = [program, verb, "-D", str(images), "-W", str(work), *common, *options]
    kept = () if inherited is None else (inherited,)
    done = subprocess.run(arguments, pass_fds=kept, check=False, timeout=60)
    log = work / f"{verb}.log"
    assert done.returncode == 0, log.read_text(errors="replace")[-4000:] if log.exists() else ""


def wait_for(path: Path) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


@contextlib.contextmanager
def workload(report: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = [sys.executable, connected_workload.__file__, str(report)]
    process = subprocess.Popen(
        program,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(report)
        yield process
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(ProcessLookupError):  # it has never been restored, or has ended
            os.kill(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def other_network() -> Iterator[int]:
    """A network namespace with nothing but its loopback."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert libc.unshare(NEW_NETWORK) == 0
    made = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh", b"lo", 0x41))
    assert libc.setns(before, NEW_NETWORK) == 0
    os.close(before)
    try:
        yield made
    finally:
        os.close(made)


def test_connections_inside_live_on_and_those_to_outside_are_closed(tmp_path: Path) -> None:
    report, images, copy = tmp_path / "report", tmp_path / "images", tmp_path / "copy"
    images.mkdir()
    with workload(report) as process:
        pid = process.pid
        network = Path(f"/proc/{pid}/ns/net").stat().st_ino
        outer = f"net[{network}]:{NETWORK}"
        criu("dump", images, tmp_path / "work", "-t", str(pid), "--external", outer)
        process.wait()

        assert [one.pid for one in processes(images)] == [pid]
        closed = copy_changed(images, copy)
        assert {one.peer.split(":")[0] for one in closed} == {connected_workload.OUTSIDE}
        assert sorted(one.protocol for one in closed) == ["tcp", "tcp", "udp"]
        assert sorted(one.protocol for one in connections(copy)) == ["tcp"] * 4

        with other_network() as made:
            given = f"fd[{made}]:{NETWORK}"
            criu("restore", copy, tmp_path / "work", "-d", "--inherit-fd", given, inherited=made)
        report.with_suffix(".go").touch()
        found = json.loads(wait_for(report.with_suffix(".json")))

    assert found == {
        "queued": "queued",
        "inside": "b'x'",
        "inside 6": "b'y'",
        "outside read": f"OSError {errno.ENOTCONN}",
        "outside write": f"BrokenPipeError {errno.EPIPE}",
        "outside waiting": [f"OSError {errno.ENOTCONN}"],
        "datagram": f"OSError {errno.EDESTADDRREQ}",
    }
