"""A process with connections inside and outside of its network, for a dump and a restore.

`connected_workload.py REPORT` makes them in a network namespace of its own, writes "ready" to
REPORT, waits for the file REPORT.go, and then writes as JSON what it found them to be.
"""

import ctypes
import fcntl
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

OUTSIDE = "10.1.2.3"
ALIAS = b"lo:1"
ADDRESS = struct.Struct("16sHH4s8x")
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C

Pair = tuple[socket.socket, socket.socket]


def enter_network() -> None:
    """A new network whose loopback is up and has a second address that is none of a loopback."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh", b"lo", 0x41))
        for request, address in ((SIOCSIFADDR, OUTSIDE), (SIOCSIFNETMASK, "255.255.255.0")):
            raw = ADDRESS.pack(ALIAS, socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(control, request, raw)


def connected(address: str, family: int = socket.AF_INET) -> Pair:
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        near = socket.create_connection(listener.getsockname()[:2])
        far, _ = listener.accept()
    return near, far


def outcome(call: Callable[[], object]) -> str:
    try:
        return str(call())
    except OSError as error:
        return type(error).__name__ + f" {error.errno}"


def main(report: Path) -> None:
    enter_network()
    inside, inside_6 = connected("127.0.0.1"), connected("::1", socket.AF_INET6)
    outside = connected(OUTSIDE)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.connect((OUTSIDE, 53))
    inside[0].sendall(b"queued")
    waited: list[str] = []
    waiter = threading.Thread(target=lambda: waited.append(outcome(lambda: outside[1].recv(1))))
    waiter.start()
    report.write_text("ready")
    while not report.with_suffix(".go").exists():
        time.sleep(0.02)
    waiter.join(30)
    found = {
        "queued": inside[1].recv(99).decode(),
        "inside": outcome(lambda: inside[0].send(b"x") and inside[1].recv(9)),
        "inside 6": outcome(lambda: inside_6[0].send(b"y") and inside_6[1].recv(9)),
        "outside read": outcome(lambda: outside[0].recv(9)),
        "outside write": outcome(lambda: outside[0].send(b"z")),
        "outside waiting": waited,
        "datagram": outcome(lambda: datagrams.send(b"q")),
    }
    done = report.with_suffix(".new")
    done.write_text(json.dumps(found))
    done.rename(report.with_suffix(".json"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
