"""A root filesystem's changes go round on real overlay mounts: what the container saw, it sees."""

import asyncio
import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node_worker.archives import ArchiveFailed
from node_worker.containerd.port import Mount
from node_worker.rootfs import apply, capture, writable_layer
from schemas import reasons
from tests.support.mounts import mounted
from tests.support.pictures import picture

NAMES = ("a", "b", "dir", "dir/c", "dir/sub", "dir/sub/d", "e\n\udcff", "etc", "etc/passwd")


class Layers:
    """One lower folder, and upper folders over it that are mounted one at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lower = root / "lower"
        fill_lower(self.lower)

    def mounts(self, name: str) -> tuple[Mount, ...]:
        upper, work = self.root / name / "fs", self.root / name / "work"
        upper.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        options = (f"lowerdir={self.lower}", f"upperdir={upper}", f"workdir={work}")
        return (Mount(type="overlay", source="overlay", options=("index=off", *options)),)

    @contextlib.contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        (mount,) = self.mounts(name)
        merged = self.root / name / "merged"
        merged.mkdir(exist_ok=True)
        with mounted(merged, "-t", "overlay", "overlay", "-o", ",".join(mount.options)):
            yield merged


def fill_lower(lower: Path) -> None:
    for name in ("dir/sub", "etc", "var/empty"):
        (lower / name).mkdir(parents=True)
    for name in ("a", "dir/c", "dir/sub/d", "dir/sub/e", "etc/passwd"):
        (lower / name).write_text(f"lower {name}")
    (lower / "link").symlink_to("dir/c")
    os.link(lower / "a", lower / "hard")


@pytest.fixture
def layers() -> Iterator[Layers]:
    with temporary_layers() as made:
        yield made


@contextlib.contextmanager
def temporary_layers() -> Iterator[Layers]:
    root = Path(tempfile.mkdtemp(prefix="ky-rootfs-", dir="/tmp"))
    try:
        yield Layers(root)
    finally:
        shutil.rmtree(root)


def go_round(layers: Layers) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is seen before in `old`, and after taking it along in `new`."""
    archive = layers.root / "rootfs.tar"
    with layers.mounted("old") as merged:
        before = picture(merged)
        size = asyncio.run(capture(layers.mounts("old"), archive))
    assert size == archive.stat().st_size
    asyncio.run(apply(layers.mounts("new"), archive))
    with layers.mounted("new") as merged:
        return before, picture(merged)


def test_every_kind_of_change_comes_back(layers: Layers) -> None:
    with layers.mounted("old") as root:
        change_everything(root)
    before, after = go_round(layers)

    assert after == before
    assert "dir/sub/d" not in after
    assert "etc/passwd" not in after
    sparse = layers.root / "new/fs/sparse"
    assert sparse.stat().st_blocks * 512 < 1024 * 1024


def change_everything(root: Path) -> None:
    (root / "a").write_text("changed")
    (root / "new").write_bytes(os.urandom(100_000))
    os.link(root / "new", root / "dir/second name")
    (root / "dir/sub/d").unlink()
    shutil.rmtree(root / "etc")
    (root / "etc").mkdir(mode=0o750)
    (root / "etc/fresh").write_text("in an opaque folder")
    (root / "link").unlink()
    (root / "link").symlink_to("/nowhere/at all")
    (root / "var/empty").rmdir()
    (root / "var/empty").write_text("a file where a folder was")
    change_owners_and_attributes(root)
    os.mkfifo(root / "fifo", 0o622)
    os.mknod(root / "device", 0o20640, os.makedev(1, 3))
    with (root / "sparse").open("wb") as file:
        file.seek(64 * 1024 * 1024)
        file.write(b"end")
    os.utime(root / "new", ns=(1, 1_234_567_890_123_456_789))
    (root / "a\udcffname\nwith everything").touch()
    deep = root / "/".join(["long" * 40] * 8).lstrip("/")
    deep.mkdir(parents=True)
    (deep / ("x" * 200)).write_text("far down")


def change_owners_and_attributes(root: Path) -> None:
    os.chown(root / "dir/c", 1000, 4_000_000)
    (root / "dir/c").chmod(0o6751)
    (root / "dir").chmod(0o1777)
    os.setxattr(root / "a", "user.note", b"kept \x00\xff")
    os.setxattr(root / "dir", "trusted.secret", b"kept too")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(root / "new", "security.capability", capability)
    acl = bytes.fromhex(
        "02000000" "01000600ffffffff" "02000400e8030000" "04000400ffffffff"
        "10000600ffffffff" "20000000ffffffff"
    )  # fmt: skip
    os.setxattr(root / "a", "system.posix_acl_access", acl)


def test_a_socket_is_left_to_criu(layers: Layers) -> None:
    import socket  # noqa: PLC0415 - one test needs it

    with layers.mounted("old") as root, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(root / "socket"))
        before, after = go_round_mounted(layers)
    assert "socket" in before
    assert "socket" not in after


def go_round_mounted(layers: Layers) -> tuple[set[str], set[str]]:
    archive = layers.root / "rootfs.tar"
    asyncio.run(capture(layers.mounts("old"), archive))
    asyncio.run(apply(layers.mounts("new"), archive))
    return names_in(layers.root / "old/fs"), names_in(layers.root / "new/fs")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_no_change_is_a_change_that_can_be_brought_back(layers: Layers) -> None:
    before, after = go_round(layers)
    assert after == before


def test_bringing_back_twice_is_the_same_as_once(layers: Layers) -> None:
    with layers.mounted("old") as root:
        change_everything(root)
    before, _ = go_round(layers)
    (layers.root / "new/fs/left over").write_text("from a try that was cut short")
    _, again = go_round(layers)
    assert again == before


KINDS = (
    "write", "remove", "mkdir", "replace", "link", "symlink", "rename", "mode", "owner", "xattr",
    "fifo", "sparse",
)  # fmt: skip
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.integers(0, 0o7777),
    ),
    max_size=25,
)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(CHANGES)
def test_any_sequence_of_changes_comes_back(changes: list[tuple[str, str, str, int]]) -> None:
    with temporary_layers() as layers:
        with layers.mounted("old") as root:
            for kind, name, other, number in changes:
                change(root, kind, name, other, number)
        before, after = go_round(layers)
        assert after == before


POSSIBLE_REFUSALS = {
    errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL,
    errno.EXDEV, errno.EPERM, errno.ENXIO, errno.EBUSY,
}  # fmt: skip


def change(root: Path, kind: str, name: str, other: str, number: int) -> None:
    """One change, unless the tree as it is now does not allow it."""
    try:
        change_one(root / name, root / other, kind, number)
    except OSError as error:
        if error.errno not in POSSIBLE_REFUSALS:
            raise


def change_one(path: Path, other: Path, kind: str, number: int) -> None:  # noqa: C901, PLR0912
    if path.is_symlink() and kind in {"write", "sparse", "mode", "xattr"}:
        return
    match kind:
        case "write":
            if not path.is_fifo():
                path.write_bytes(b"%d" % number * number)
        case "remove":
            remove(path)
        case "mkdir":
            path.mkdir()
        case "replace":
            remove(path)
            path.mkdir()
        case "link":
            os.link(path, other, follow_symlinks=False)
        case "symlink":
            path.symlink_to(f"{other.name}{number}")
        case "rename":
            path.rename(other)
        case "mode":
            path.chmod(number)
        case "owner":
            os.chown(path, number, number + 1, follow_symlinks=False)
        case "xattr":
            os.setxattr(path, f"user.n{number % 3}", b"%d" % number)
        case "fifo":
            os.mkfifo(path, number)
        case "sparse":
            if not path.is_fifo():
                with path.open("ab") as file:
                    file.truncate(number * 4096)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def test_a_snapshot_without_a_layer_of_its_own_is_taken_whole(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    fill_lower(old)
    new.mkdir()
    (new / "gone").write_text("the container deleted it")
    archive = tmp_path / "rootfs.tar"

    asyncio.run(capture((bind(old),), archive))
    asyncio.run(apply((bind(new),), archive))

    assert picture(new) == picture(old)


def bind(folder: Path) -> Mount:
    return Mount(type="bind", source=str(folder), options=("rbind", "rw"))


@pytest.mark.parametrize(
    "mounts",
    [
        (),
        (Mount(type="overlay", source="overlay", options=("lowerdir=/a:/b",)),),
        (Mount(type="bind", source="/somewhere", options=("rbind", "ro")),),
        (Mount(type="erofs", source="/dev/loop1"),),
    ],
)
def test_without_a_writable_layer_there_is_nothing_to_take_along(
    mounts: tuple[Mount, ...],
) -> None:
    with pytest.raises(ArchiveFailed, match="writable layer") as caught:
        writable_layer(mounts)
    assert caught.value.reason == reasons.ROOTFS_FAILED


def test_a_missing_layer_is_told_and_leaves_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ArchiveFailed, match="No such file") as caught:
        asyncio.run(capture((bind(tmp_path / "gone"),), tmp_path / "rootfs.tar"))
    assert caught.value.reason == reasons.ROOTFS_FAILED
    assert not (tmp_path / "rootfs.tar").exists()


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "rootfs.tar").write_bytes(b"no archive" * 200)
    (tmp_path / "new").mkdir()
    with pytest.raises(ArchiveFailed, match="tar failed"):
        asyncio.run(apply((bind(tmp_path / "new"),), tmp_path / "rootfs.tar"))


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old/large").write_bytes(os.urandom(4 * 1024 * 1024))
    with mounted(small, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        with pytest.raises(ArchiveFailed) as caught:
            asyncio.run(capture((bind(tmp_path / "old"),), small / "rootfs.tar"))
        assert list(small.iterdir()) == []
    assert caught.value.reason == reasons.DISK_FULL


def test_a_tar_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging(tmp_path, monkeypatch)
    with pytest.raises(ArchiveFailed, match="did not end"):
        asyncio.run(capture((bind(tmp_path),), tmp_path / "rootfs.tar", timeout=0.3))
    assert not process_exists(int((tmp_path / "pid").read_text()))


async def test_a_cancelled_capture_leaves_no_tar_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging(tmp_path, monkeypatch)
    work = asyncio.create_task(capture((bind(tmp_path),), tmp_path / "rootfs.tar"))
    while not (tmp_path / "pid").exists():  # noqa: ASYNC110 - the shell makes it
        await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not process_exists(int((tmp_path / "pid").read_text()))


def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a `tar` first in PATH that writes its pid and never ends."""
    program = tmp_path / "bin" / "tar"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/p\nmv {tmp_path}/p {tmp_path}/pid\n"
                       "exec sleep 1000\n")  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def process_exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
