"""An OCI createRuntime hook: brings loopback up in the container's network namespace.

Run as a file of its own by the runtime, with the container's state on its standard input. In a
new network namespace loopback is down, and CRIU cannot restore connections over it.
"""

import fcntl
import json
import os
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
REQUEST = struct.Struct("16sh14x")


def bring_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        now = fcntl.ioctl(any_socket, SIOCGIFFLAGS, REQUEST.pack(b"lo", 0))
        name, flags = REQUEST.unpack(now)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, REQUEST.pack(name, flags | IFF_UP))


def enter(pid: int) -> None:
    import ctypes  # noqa: PLC0415 - costs milliseconds, and Python 3.12 can do without

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if hasattr(os, "setns"):
        os.setns(descriptor, CLONE_NEWNET)
    elif libc.setns(descriptor, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"cannot enter the network of process {pid}: {os.strerror(error)}")


if __name__ == "__main__":
    enter(int(json.load(sys.stdin)["pid"]))
    bring_up()
