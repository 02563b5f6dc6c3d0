"""Pipes, sockets, terminals: what a workload talks through."""

import errno
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

from zoo.animal import animal, expect, fork


@animal
def pipe_in_flight() -> Iterator[None]:
    """Bytes that were written and not yet read."""
    reading, writing = os.pipe()
    content = b"unread " * 1000
    os.write(writing, content)
    yield
    while True:
        expect(os.read(reading, 65536) == content, "the pipe's content differs")
        os.write(writing, content)
        yield


@animal
def unix_sockets() -> Iterator[None]:
    """A listening socket, a connection through it, a pair of datagram sockets with a message."""
    path = "/tmp/zoo.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    server, _ = listener.accept()
    client.sendall(b"in flight")
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.send(b"datagram")
    yield
    while True:
        expect(server.recv(64) == b"in flight", "the stream lost its data")
        expect(right.recv(64) == b"datagram", "the datagram is lost")
        late = socket.socket(socket.AF_UNIX)
        late.connect(path)
        listener.accept()[0].close()
        client.sendall(b"in flight")
        left.send(b"datagram")
        yield


@animal
def tcp_loopback() -> Iterator[None]:
    """A listener, an established connection with unread data both ways, over 127.0.0.1 and ::1."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.sendall(b"to the server")
    server.sendall(b"to the client")
    yield
    while True:
        expect(server.recv(64) == b"to the server", "the server's data is lost")
        expect(client.recv(64) == b"to the client", "the client's data is lost")
        late = socket.create_connection(listener.getsockname())
        listener.accept()[0].close()
        late.close()
        client.sendall(b"to the server")
        server.sendall(b"to the client")
        yield


@animal
def udp_loopback() -> Iterator[None]:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect(receiver.getsockname())
    yield
    while True:
        sender.send(b"hello")
        receiver.settimeout(5)
        expect(receiver.recv(64) == b"hello", "the datagram did not arrive")
        yield


@animal
def descriptors_over_a_socket() -> Iterator[None]:
    """A descriptor that lies in a socket's queue."""
    left, right = socket.socketpair()
    reading, writing = os.pipe()
    socket.send_fds(left, [b"!"], [reading])
    yield
    while True:
        _, descriptors, _, _ = socket.recv_fds(right, 1, 1)
        os.write(writing, b"through")
        expect(os.read(descriptors[0], 16) == b"through", "the descriptor leads elsewhere")
        socket.send_fds(left, [b"!"], [descriptors[0]])
        os.close(descriptors[0])
        yield


@animal
def pseudo_terminal() -> Iterator[None]:
    """A terminal of the container's own, with a child at its end."""
    control, terminal = os.openpty()

    def shout() -> None:
        while data := os.read(terminal, 64):
            os.write(terminal, data.upper())

    fork(shout)
    yield
    while True:
        os.write(control, b"quiet\n")
        heard = b""
        while b"QUIET" not in heard:
            readable, _, _ = select.select([control], [], [], 5)
            expect(readable, f"the terminal said only {heard!r}")
            heard += os.read(control, 256)
        yield


@animal
def named_pipe() -> Iterator[None]:
    path = Path("/var/tmp/named")
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    os.write(descriptor, b"named")
    yield
    while True:
        expect(os.read(descriptor, 16) == b"named", "the content differs")
        os.write(descriptor, b"named")
        yield


@animal
def outside_connection() -> Iterator[None]:
    """A connection to a peer outside, given by address: closed on resume, and noticed as such."""
    host, port = os.environ["PEER"].rsplit(":", 1)
    peer = socket.create_connection((host, int(port)))
    peer.settimeout(5)
    peer.sendall(b"before\n")
    yield
    while True:
        try:
            peer.sendall(b"after\n")
            closed = peer.recv(1) == b""
        except OSError as error:
            closed = error.errno in {errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN}
        expect(closed, "the connection to the outside is still there")
        yield
