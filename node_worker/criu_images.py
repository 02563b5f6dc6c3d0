"""Reads the few CRIU images that matter here, and makes copies that can be restored.

A connection to a peer outside the container cannot be taken to another place: the peer does not
know. It is closed instead, as the process would see it when the network goes away: reading and
writing fail, polling reports a hang-up. Connections over the loopback live on, because both ends
are in the images.

A periodic timer that has run out since it was last read has no next time in its image, and CRIU
would restore it disarmed. It gets its period as the time until then.

`files.img` alone holds all of this; every other image is linked, not copied.
"""

import ipaddress
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final

import msgspec

from node_worker import protowire
from node_worker.protowire import BYTES, VARINT, Field, Malformed

FILES_IMAGE: Final = "files.img"
PROCESSES_IMAGE: Final = "pstree.img"
NAMES_IMAGE: Final = "irmap-cache"

_COMMON_MAGIC: Final = 0x54564319
_SERVICE_MAGIC: Final = 0x55105940
_FILES_MAGIC: Final = 0x56303138
_PROCESSES_MAGIC: Final = 0x50273030
_NAMES_MAGIC: Final = 0x57004059
_HEADER: Final = struct.Struct("<II")
_LENGTH: Final = struct.Struct("<I")

_KIND_FIELD: Final = 1
_INET_SOCKET: Final = 4  # the kind of an entry of files.img, and the number of its field
_TIMER_KIND: Final = 17
_TIMER: Final = 12
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


class _Timer(IntEnum):
    """Numbers of the fields of a timer that is read from a descriptor."""

    TICKS = 5
    LEFT_SECONDS = 7
    LEFT_NANOSECONDS = 8
    PERIOD_SECONDS = 9
    PERIOD_NANOSECONDS = 10


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


class NamedInode(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the container by its number and by its path in the container."""

    device: int
    """As the kernel writes it: the major number, then 20 bits of the minor one."""
    inode: int
    path: str


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


def is_memory(path: str) -> bool:
    """Whether the file of that name holds pages of memory, as they were."""
    return path.rpartition("/")[2].startswith("pages-")


def needs_changes(images: Path) -> bool:
    """Whether they can only be restored as a changed copy."""
    entries = _entries(images / FILES_IMAGE, _FILES_MAGIC)
    return any(_changed_entry(fields) is not fields for fields in entries)


def copy_changed(images: Path, copy: Path) -> tuple[Connection, ...]:
    """Make `copy`, the same images with the outside connections closed and timers that go on;
    returns those connections.

    Both folders must lie on one file system, or everything is copied.
    """
    closed = outside_connections(images)
    unwanted = {f"tcp-stream-{one.inode:x}.img" for one in closed}
    copy.mkdir(mode=0o700)
    for image in sorted(images.iterdir()):
        if image.name == FILES_IMAGE:
            entries = _entries(image, _FILES_MAGIC)
            changed = [_changed_entry(fields) for fields in entries]
            _write(copy / image.name, (_COMMON_MAGIC, _FILES_MAGIC), changed)
        elif image.name not in unwanted:
            _link(image, copy / image.name)
    return closed


def write_names(work: Path, names: Sequence[NamedInode]) -> None:
    """Tell the CRIU that will work in this folder the names of inodes."""
    entries = [
        [
            Field(1, VARINT, name.device),
            Field(2, VARINT, name.inode),
            Field(3, BYTES, os.fsencode(name.path)),
        ]
        for name in names
    ]
    _write(work / NAMES_IMAGE, (_SERVICE_MAGIC, _NAMES_MAGIC), entries)


def _write(path: Path, magic: tuple[int, int], entries: Iterable[list[Field]]) -> None:
    with path.open("xb") as file:
        path.chmod(0o600)
        file.write(_HEADER.pack(*magic))
        for raw in map(protowire.encode, entries):
            file.write(_LENGTH.pack(len(raw)) + raw)


def _changed_entry(fields: list[Field]) -> list[Field]:
    """The entry as it is to be restored; the same object where nothing changes."""
    if (socket := _inet_socket(fields)) and _is_outside(socket):
        return _with_part(fields, _INET_SOCKET, _closed_socket(socket))
    if (timer := _part(fields, _TIMER_KIND, _TIMER)) and _stands_still(timer):
        return _with_part(fields, _TIMER, _going_timer(timer))
    return fields


def _with_part(fields: list[Field], number: int, part: list[Field]) -> list[Field]:
    raw = protowire.encode(part)
    return [Field(number, field.kind, raw) if field.number == number else field for field in fields]


def _is_outside(socket: list[Field]) -> bool:
    found = _connection(socket)
    return found is not None and found.outside


def _stands_still(timer: list[Field]) -> bool:
    left = (_Timer.LEFT_SECONDS, _Timer.LEFT_NANOSECONDS)
    period = (_Timer.PERIOD_SECONDS, _Timer.PERIOD_NANOSECONDS)
    return (
        protowire.number(timer, _Timer.TICKS) > 0
        and not any(protowire.number(timer, field) for field in left)
        and any(protowire.number(timer, field) for field in period)
    )


def _going_timer(timer: list[Field]) -> list[Field]:
    seconds = protowire.number(timer, _Timer.PERIOD_SECONDS)
    nanoseconds = protowire.number(timer, _Timer.PERIOD_NANOSECONDS)
    return [
        *protowire.without(timer, _Timer.LEFT_SECONDS, _Timer.LEFT_NANOSECONDS),
        Field(_Timer.LEFT_SECONDS, VARINT, seconds),
        Field(_Timer.LEFT_NANOSECONDS, VARINT, nanoseconds),
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
    return _part(fields, _INET_SOCKET, _INET_SOCKET)


def _part(fields: list[Field], kind: int, number: int) -> list[Field]:
    """What an entry of that kind says of its file; none when it is of another kind."""
    if protowire.number(fields, _KIND_FIELD) != kind:
        return []
    raw = protowire.blob(fields, number)
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
