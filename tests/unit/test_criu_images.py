import ipaddress
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_worker import protowire
from node_worker.criu_images import (
    ImagesUnreadable,
    connections,
    copy_changed,
    needs_changes,
    outside_connections,
    processes,
)
from node_worker.protowire import BYTES, VARINT, Field, Malformed

COMMON, FILES, PSTREE = 0x54564319, 0x56303138, 0x50273030
ESTABLISHED, CLOSE, LISTEN = 1, 7, 10
TCP, UDP = 6, 17


def words(address: str) -> list[int]:
    raw = ipaddress.ip_address(address).packed
    return [word for (word,) in struct.iter_unpack("<I", raw)]


def inet_socket(
    inode: int,
    source: tuple[str, int],
    peer: tuple[str, int],
    *,
    protocol: int = TCP,
    state: int = ESTABLISHED,
) -> list[Field]:
    family = 2 if ipaddress.ip_address(source[0]).version == 4 else 10
    numbers = [(1, inode + 1000), (2, inode), (3, family), (4, 1), (5, protocol), (6, state)]
    ports = [(7, source[1]), (8, peer[1]), (9, 2), (10, 0)]
    addresses = [(11, word) for word in words(source[0])]
    addresses += [(12, word) for word in words(peer[0])]
    fields = [Field(number, VARINT, value) for number, value in numbers + ports + addresses]
    return [*fields, Field(13, BYTES, b"\x08\x00"), Field(14, BYTES, b"\x08\x01"),
            Field(19, VARINT, 3), Field(99, BYTES, b"later")]  # fmt: skip


def entry(inner: list[Field]) -> bytes:
    number = protowire.number(inner, 1)
    body = Field(4, BYTES, protowire.encode(inner))
    return protowire.encode([Field(1, VARINT, 4), Field(2, VARINT, number), body])


REGULAR_FILE = protowire.encode(
    [Field(1, VARINT, 1), Field(2, VARINT, 7), Field(3, BYTES, b"\x0a\x01x")]
)


def image(magic: int, *messages: bytes) -> bytes:
    framed = b"".join(struct.pack("<I", len(message)) + message for message in messages)
    return struct.pack("<II", COMMON, magic) + framed


def folder_of(path: Path, *sockets: list[Field]) -> Path:
    path.mkdir()
    raw = image(FILES, REGULAR_FILE, *(entry(one) for one in sockets))
    (path / "files.img").write_bytes(raw)
    (path / "pages-1.img").write_bytes(b"pages")
    for one in sockets:
        (path / f"tcp-stream-{protowire.number(one, 2):x}.img").write_bytes(b"stream")
    return path


LOOPBACK = inet_socket(0x11, ("127.0.0.1", 80), ("127.0.0.1", 40000))
LOOPBACK_6 = inet_socket(0x12, ("::1", 80), ("::1", 40000))
MAPPED = inet_socket(0x13, ("::ffff:127.0.0.1", 80), ("::ffff:127.0.0.9", 40000))
OUTSIDE = inet_socket(0xAB, ("10.0.0.5", 41000), ("93.184.216.34", 443))
OUTSIDE_6 = inet_socket(0xAC, ("fd00::5", 41000), ("2001:db8::1", 443))
LISTENER = inet_socket(0x14, ("0.0.0.0", 80), ("0.0.0.0", 0), state=LISTEN)  # noqa: S104
RESOLVER = inet_socket(0xAD, ("10.0.0.5", 41000), ("10.0.0.2", 53), protocol=UDP, state=CLOSE)
ALL = (LOOPBACK, LOOPBACK_6, MAPPED, OUTSIDE, OUTSIDE_6, LISTENER, RESOLVER)


def test_connections_to_outside_are_told_from_those_over_the_loopback(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", *ALL)

    found = {one.inode: one.outside for one in connections(images)}
    assert found == {0x11: False, 0x12: False, 0x13: False, 0xAB: True, 0xAC: True, 0xAD: True}
    assert [str(one) for one in outside_connections(images)] == [
        "tcp 10.0.0.5:41000 → 93.184.216.34:443",
        "tcp [fd00::5]:41000 → [2001:db8::1]:443",
        "udp 10.0.0.5:41000 → 10.0.0.2:53",
    ]


def test_in_the_copy_only_the_outside_connections_are_closed(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", *ALL)
    before = (images / "files.img").read_bytes()

    closed = copy_changed(images, tmp_path / "copy")

    assert closed == outside_connections(images)
    assert {one.inode for one in connections(tmp_path / "copy")} == {0x11, 0x12, 0x13}
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert {name for name in names if name.startswith("tcp-stream")} == {
        "tcp-stream-11.img", "tcp-stream-12.img", "tcp-stream-13.img", "tcp-stream-14.img",
    }  # fmt: skip
    assert (images / "files.img").read_bytes() == before
    assert (tmp_path / "copy/pages-1.img").samefile(images / "pages-1.img")


def test_a_closed_socket_is_an_unconnected_one_and_keeps_what_is_not_known_here(
    tmp_path: Path,
) -> None:
    images = folder_of(tmp_path / "images", LOOPBACK, OUTSIDE_6)

    copy_changed(images, tmp_path / "copy")

    closed = inet_socket(0xAC, ("::", 0), ("::", 0), state=CLOSE)
    rewritten = (tmp_path / "copy/files.img").read_bytes()
    assert rewritten.startswith(image(FILES, REGULAR_FILE, entry(LOOPBACK)))
    last = rewritten[len(image(FILES, REGULAR_FILE, entry(LOOPBACK))) + 4 :]
    socket = protowire.decode(protowire.blob(protowire.decode(last), 4) or b"")
    assert set(map(repr, socket)) == {repr(f) for f in closed if f.number != 19}


def test_a_datagram_socket_keeps_its_port(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", RESOLVER)
    copy_changed(images, tmp_path / "copy")
    raw = (tmp_path / "copy/files.img").read_bytes()
    assert protowire.encode([Field(7, VARINT, 41000)]) in raw


def test_without_outside_connections_the_copy_is_the_same(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", LOOPBACK, LISTENER)

    assert copy_changed(images, tmp_path / "copy") == ()
    for path in images.iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()


def timer(ticks: int, left: tuple[int, int], period: tuple[int, int]) -> bytes:
    numbers = [(1, 9), (2, 2), (4, 1), (5, ticks), (6, 0), (7, left[0]), (8, left[1])]
    numbers += [(9, period[0]), (10, period[1]), (99, 4)]
    inner = [Field(3, BYTES, b""), *(Field(number, VARINT, value) for number, value in numbers)]
    body = Field(12, BYTES, protowire.encode(inner))
    return protowire.encode([Field(1, VARINT, 17), Field(2, VARINT, 9), body])


def test_a_periodic_timer_that_ran_out_goes_on_after_its_period(tmp_path: Path) -> None:
    raw = image(FILES, REGULAR_FILE, timer(3, (0, 0), (2, 500)))
    images = tmp_path / "images"
    images.mkdir()
    (images / "files.img").write_bytes(raw)
    assert needs_changes(images)

    assert copy_changed(images, tmp_path / "copy") == ()

    written = (tmp_path / "copy/files.img").read_bytes()
    last = protowire.decode(written[len(image(FILES, REGULAR_FILE)) + 4 :])
    changed = protowire.decode(protowire.blob(last, 12) or b"")
    wanted = protowire.decode(timer(3, (2, 500), (2, 500)))
    assert sorted(map(repr, changed)) == sorted(
        map(repr, protowire.decode(protowire.blob(wanted, 12) or b""))
    )


@pytest.mark.parametrize(
    "other",
    [
        timer(0, (0, 0), (2, 500)),  # not armed
        timer(3, (0, 0), (0, 0)),  # ran out once and for all
        timer(3, (0, 7), (2, 500)),
        REGULAR_FILE,
        entry(LOOPBACK),
        entry(LISTENER),
    ],
)
def test_what_can_be_restored_as_it_is_is_not_copied(tmp_path: Path, other: bytes) -> None:
    (tmp_path / "files.img").write_bytes(image(FILES, other))
    assert not needs_changes(tmp_path)


def test_the_process_tree_is_read(tmp_path: Path) -> None:
    def process(pid: int, parent: int, *threads: int) -> bytes:
        numbers = [(1, pid), (2, parent), (3, 1), (4, 1), *((5, thread) for thread in threads)]
        return protowire.encode([Field(number, VARINT, value) for number, value in numbers])

    raw = image(PSTREE, process(1, 0, 1, 8), process(9, 1, 9))
    (tmp_path / "pstree.img").write_bytes(raw)

    found = [(one.pid, one.parent, one.threads) for one in processes(tmp_path)]
    assert found == [(1, 0, (1, 8)), (9, 1, (9,))]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00" * 8,
        image(PSTREE),
        image(FILES)[:-1],
        image(FILES, REGULAR_FILE)[:-1],
        image(FILES) + b"\x01\x00",
        image(FILES, b"\xff"),
        image(FILES, b"\x07"),
        image(FILES, protowire.encode([Field(1, VARINT, 4), Field(4, BYTES, b"\xff")])),
        image(FILES, entry([Field(5, VARINT, TCP), Field(8, VARINT, 443)])),
    ],
)
def test_an_image_that_is_not_understood_is_an_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "files.img").write_bytes(raw)
    with pytest.raises(ImagesUnreadable, match=r"files\.img"):
        connections(tmp_path)


def test_a_missing_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImagesUnreadable, match=r"files\.img"):
        copy_changed(tmp_path, tmp_path / "copy")


FIELDS = st.one_of(
    st.builds(Field, st.integers(1, 2**29 - 1), st.just(VARINT), st.integers(0, 2**64 - 1)),
    st.builds(Field, st.integers(1, 2**29 - 1), st.just(BYTES), st.binary(max_size=300)),
    st.builds(Field, st.integers(1, 999), st.just(1), st.binary(min_size=8, max_size=8)),
    st.builds(Field, st.integers(1, 999), st.just(5), st.binary(min_size=4, max_size=4)),
)


@given(st.lists(FIELDS))
def test_fields_survive_the_wire(fields: list[Field]) -> None:
    assert protowire.decode(protowire.encode(fields)) == fields


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_malformed(raw: bytes) -> None:
    try:
        protowire.decode(raw)
    except Malformed as error:
        assert str(error)  # noqa: PT017 - either outcome is right
