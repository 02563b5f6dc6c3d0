"""The contents of volumes go round as they are: from a disk into memory, and back."""

import asyncio
import os
from pathlib import Path

import pytest

from node_worker import archives
from node_worker.archives import ArchiveFailed
from node_worker.volumes import Volume
from schemas import reasons
from tests.support.mounts import mounted
from tests.support.pictures import picture


def take(source: Path, target: Path, archive: Path) -> None:
    subject = Volume(name="work", path=source).subject
    asyncio.run(archives.pack(source, archive, subject))
    asyncio.run(archives.unpack(archive, target, subject))


def fill(folder: Path) -> None:
    (folder / "file").write_bytes(os.urandom(100_000))
    os.link(folder / "file", folder / "again")
    os.chown(folder / "file", 1000, 1001)
    (folder / "file").chmod(0o4750)
    (folder / "sub").mkdir(mode=0o2770)
    (folder / "sub/link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "fifo", 0o622)
    os.mknod(folder / "device", 0o20640, os.makedev(1, 3))
    with (folder / "sparse").open("wb") as file:
        file.truncate(64 << 20)
    os.setxattr(folder / "file", "trusted.kind", b"kept")
    os.utime(folder / "sub", ns=(1, 1_234_567_890_123_456_789))
    folder.chmod(0o1777)


def test_what_goes_into_memory_and_back_is_the_same(tmp_path: Path) -> None:
    old, memory, new = (tmp_path / name for name in ("old", "memory", "new"))
    for folder in (old, memory, new):
        folder.mkdir()
    fill(old)

    with mounted(memory, "-t", "tmpfs", "-o", "size=8m", "tmpfs"):
        take(old, memory, tmp_path / "one.tar")
        assert picture(memory) == picture(old)
        take(memory, new, tmp_path / "two.tar")

    assert picture(new) == picture(old)
    assert (new / "sparse").stat().st_blocks * 512 < 1 << 20


def test_a_pods_security_label_stays_with_it(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    (old / "file").touch()
    for name in ("security.selinux", "trusted.kind"):
        os.setxattr(old / "file", name, b"system_u:object_r:container_file_t:s0:c1,c2")

    take(old, new, tmp_path / "one.tar")

    assert "trusted.kind" in os.listxattr(new / "file")
    assert "security.selinux" not in os.listxattr(new / "file")


def test_a_volume_that_is_too_small_is_told_as_one(tmp_path: Path) -> None:
    old, small = tmp_path / "old", tmp_path / "small"
    for folder in (old, small):
        folder.mkdir()
    (old / "large").write_bytes(os.urandom(4 << 20))

    with (
        mounted(small, "-t", "tmpfs", "-o", "size=1m", "tmpfs"),
        pytest.raises(ArchiveFailed, match="the pod's emptyDir work") as caught,
    ):
        take(old, small, tmp_path / "one.tar")

    assert caught.value.reason == reasons.DISK_FULL


def test_what_is_mounted_inside_a_volume_is_not_taken(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "inner").mkdir(parents=True)
    new.mkdir()

    with mounted(old / "inner", "-t", "tmpfs", "tmpfs"):
        (old / "inner/file").touch()
        take(old, new, tmp_path / "one.tar")

    assert list((new / "inner").iterdir()) == []
