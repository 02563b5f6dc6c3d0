"""Reads the few CRIU images that matter here, and makes copies in which connections are closed.

A connection to a peer outside the container cannot be taken to another place: the peer does not
know. It is closed instead, as the process would see it when the network goes away: reading and
writing fail, polling reports a hang-up. Connections over the loopback live on, because both ends
are in the images. `files.img` alone says which is which; every other image is linked, not copied.
"""

import ipaddress
import os
import shutil
import struct
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Final

import msgspec

from node_worker import protowire
from node_worker.protowire import VARINT, Field, Malformed

FILES_IMAGE: Final = "files.img"
PROCESSES_IMAGE: Final = "pstree.img"

_COMMON_MAGIC: Final = 0x54564319
_FILES_MAGIC: Final = 0x56303138
_PROCESSES_MAGIC: Final = 0x50273030
_HEADER: Final = struct.Struct("<II")
_LENGTH: Final = struct.Struct("<I")

_INET_SOCKET: Final = 4  # the kind of an entry of files.img, and the number of its field
_KIND_FIELD: Final = 1
_TCP: Final = 6
_DATAGRAM_PROTOCOLS: Final = frozenset({17, 136})
_TCP_CLOSE: Final = 7
_IPV4: Final = 2


class _Socket(IntEnum):
    """Numbers of the fields of an internet socket."""

    INODE = 2
    FAMILY = 3
    PROTOCOL = 5
    STATE = 6
    SOURCE_PORT = 7
    PEER_PORT = 8
    SOURCE_ADDRESS = 11
    PEER_ADDRESS = 12
    SHUT_DOWN = 19


class ImagesUnreadable(Exception):
    """The CRIU images are not what this program understands; see the message for which."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """A connected internet socket of the dumped processes."""

    inode: int
    protocol: str
    source: str
    peer: str
    outside: bool

    def __str__(self) -> str:
        return f"{self.protocol} {self.source} → {self.peer}"


class ImageProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A dumped process by its numbers inside the container."""

    pid: int
    parent: int
    threads: tuple[int, ...]


def connections(images: Path) -> tuple[Connection, ...]:
    """All connected internet sockets, TCP and connected UDP."""
    sockets = [_inet_socket(entry) for entry in _entries(images / FILES_IMAGE, _FILES_MAGIC)]
    return tuple(found for fields in sockets if fields and (found := _connection(fields)))


def outside_connections(images: Path) -> tuple[Connection, ...]:
    return tuple(found for found in connections(images) if found.outside)


def processes(images: Path) -> tuple[ImageProcess, ...]:
    """The process tree, in the order in which it was dumped."""
    found = _entries(images / PROCESSES_IMAGE, _PROCESSES_MAGIC)
    return tuple(
        ImageProcess(
            pid=protowire.number(fields, 1),
            parent=protowire.number(fields, 2),
            threads=tuple(protowire.numbers(fields, 5)),
        )
        for fields in found
    )


def copy_closed(images: Path, copy: Path) -> tuple[Connection, ...]:
    """Make `copy`, the same images with the outside connections closed; returns those.

    Both folders must lie on one file system, or everything is copied.
    """
    closed = outside_connections(images)
    unwanted = {f"tcp-stream-{one.inode:x}.img" for one in closed}
    copy.mkdir(mode=0o700)
    for image in sorted(images.iterdir()):
        if image.name == FILES_IMAGE:
            _rewrite(image, copy / image.name, {one.inode for one in closed})
        elif image.name not in unwanted:
            _link(image, copy / image.name)
    return closed


def _rewrite(source: Path, target: Path, inodes: set[int]) -> None:
    entries = [_closed_entry(fields, inodes) for fields in _entries(source, _FILES_MAGIC)]
    raw = [protowire.encode(fields) for fields in entries]
    with target.open("xb") as file:
        target.chmod(0o600)
        file.write(_HEADER.pack(_COMMON_MAGIC, _FILES_MAGIC))
        for entry in raw:
            file.write(_LENGTH.pack(len(entry)) + entry)


def _closed_entry(fields: list[Field], inodes: set[int]) -> list[Field]:
    inner = _inet_socket(fields)
    if not inner or protowire.number(inner, _Socket.INODE) not in inodes:
        return fields
    closed = protowire.encode(_closed_socket(inner))
    return [
        Field(field.number, field.kind, closed) if field.number == _INET_SOCKET else field
        for field in fields
    ]


def _closed_socket(fields: list[Field]) -> list[Field]:
    """The socket as one that was never connected; bound to no address that may be gone.

    A datagram socket keeps its port, because others may know it.
    """
    words = 1 if protowire.number(fields, _Socket.FAMILY) == _IPV4 else 4
    datagram = protowire.number(fields, _Socket.PROTOCOL) in _DATAGRAM_PROTOCOLS
    port = protowire.number(fields, _Socket.SOURCE_PORT) if datagram else 0
    kept = protowire.without(
        fields,
        _Socket.STATE,
        _Socket.SOURCE_PORT,
        _Socket.PEER_PORT,
        _Socket.SOURCE_ADDRESS,
        _Socket.PEER_ADDRESS,
        _Socket.SHUT_DOWN,
    )
    return [
        *kept,
        Field(_Socket.STATE, VARINT, _TCP_CLOSE),
        Field(_Socket.SOURCE_PORT, VARINT, port),
        Field(_Socket.PEER_PORT, VARINT, 0),
        *[Field(_Socket.SOURCE_ADDRESS, VARINT, 0)] * words,
        *[Field(_Socket.PEER_ADDRESS, VARINT, 0)] * words,
    ]


def _inet_socket(fields: list[Field]) -> list[Field]:
    """The fields of the internet socket that an entry describes; none when it is another file."""
    if protowire.number(fields, _KIND_FIELD) != _INET_SOCKET:
        return []
    raw = protowire.blob(fields, _INET_SOCKET)
    return _understood(protowire.decode, raw, FILES_IMAGE) if raw else []


def _connection(fields: list[Field]) -> Connection | None:
    protocol = protowire.number(fields, _Socket.PROTOCOL)
    port = protowire.number(fields, _Socket.PEER_PORT)
    if not port or protocol not in {_TCP, *_DATAGRAM_PROTOCOLS}:
        return None
    peer = _address(fields, _Socket.PEER_ADDRESS)
    source = _address(fields, _Socket.SOURCE_ADDRESS)
    return Connection(
        inode=protowire.number(fields, _Socket.INODE),
        protocol="tcp" if protocol == _TCP else "udp",
        source=_endpoint(source, protowire.number(fields, _Socket.SOURCE_PORT)),
        peer=_endpoint(peer, port),
        outside=not peer.is_loopback,
    )


def _address(fields: list[Field], wanted: _Socket) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """CRIU keeps an address as the words that the kernel holds in network order."""
    words = protowire.numbers(fields, wanted)
    size = 1 if protowire.number(fields, _Socket.FAMILY) == _IPV4 else 4
    if len(words) < size or any(word > 0xFFFFFFFF for word in words):  # noqa: PLR2004 - 32 bits
        raise ImagesUnreadable(f"{FILES_IMAGE}: a socket without a whole address")
    raw = struct.pack(f"<{size}I", *words[:size])
    address = ipaddress.ip_address(raw)
    return getattr(address, "ipv4_mapped", None) or address


def _endpoint(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"  # noqa: PLR2004


def _entries(path: Path, magic: int) -> list[list[Field]]:
    """The messages of an image: two magic numbers, then length and message, to the end."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ImagesUnreadable(f"{path.name}: {error.strerror}") from error
    if len(raw) < _HEADER.size or _HEADER.unpack_from(raw) != (_COMMON_MAGIC, magic):
        raise ImagesUnreadable(f"{path.name} is not the image that its name says")
    entries: list[list[Field]] = []
    position = _HEADER.size
    while position < len(raw):
        end = _end_of_entry(raw, position, path.name)
        message = raw[position + _LENGTH.size : end]
        entries.append(_understood(protowire.decode, message, path.name))
        position = end
    return entries


def _end_of_entry(raw: bytes, position: int, name: str) -> int:
    if position + _LENGTH.size > len(raw):
        raise ImagesUnreadable(f"{name} ends in the middle of an entry")
    end = position + _LENGTH.size + int(_LENGTH.unpack_from(raw, position)[0])
    if end > len(raw):
        raise ImagesUnreadable(f"{name} ends in the middle of an entry")
    return end


def _understood(decode: Callable[[bytes], list[Field]], raw: bytes, name: str) -> list[Field]:
    try:
        return decode(raw)
    except Malformed as error:
        raise ImagesUnreadable(f"{name} holds {error}") from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target, follow_symlinks=False)
