import os
from pathlib import Path

import pytest

from node_worker import protowire
from node_worker.criu_images import NamedInode, write_names
from node_worker.processes import OpenFile, Process
from node_worker.watches import named_watches

INIT, WATCHER = 100, 101


class World:
    """A container's root, and a /proc in which one of its processes watches what it is told."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.proc = folder / "proc"
        (self.root / "srv/deep/er").mkdir(parents=True)
        (self.root / "srv/deep/er/file").touch()
        (self.root / "srv/other").touch()
        (self.root / "link").symlink_to("srv")
        (self.proc / f"{INIT}").mkdir(parents=True)
        (self.proc / f"{INIT}/root").symlink_to(self.root)
        (self.proc / f"{WATCHER}/fdinfo").mkdir(parents=True)

    def watch(self, *files: tuple[int, int]) -> None:
        lines = ["pos:\t0", "flags:\t00"]
        lines += [
            f"inotify wd:{number:x} ino:{inode:x} sdev:{device:x} mask:2 ignored_mask:0 "
            "fhandle-bytes:8 fhandle-type:1 f_handle:0102030405060708"
            for number, (device, inode) in enumerate(files, 1)
        ]
        (self.proc / f"{WATCHER}/fdinfo/7").write_text("\n".join(lines) + "\n")

    def named(self) -> dict[str, tuple[int, int]]:
        opened = OpenFile(descriptor=7, target="anon_inode:inotify")
        watcher = Process(pid=WATCHER, inner_pid=2, name="watcher", state="S", files=(opened,))
        found = named_watches([watcher], INIT, proc=self.proc)
        return {one.path: (one.device, one.inode) for one in found}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return os.major(status.st_dev) << 20 | os.minor(status.st_dev), status.st_ino


def test_what_is_watched_gets_its_name_in_the_container(world: World) -> None:
    folder, file = world.root / "srv/deep", world.root / "srv/deep/er/file"
    world.watch(inode(folder), inode(file))
    assert world.named() == {"/srv/deep": inode(folder), "/srv/deep/er/file": inode(file)}


def test_what_has_no_name_or_lies_elsewhere_is_left_out(world: World) -> None:
    device, number = inode(world.root / "srv/other")
    gone = world.root / "gone"
    gone.touch()
    unnamed = inode(gone)
    gone.unlink()
    world.watch(unnamed, (device + 1, number))
    assert world.named() == {}


def test_whoever_has_ended_watches_nothing(world: World) -> None:
    assert world.named() == {}
    world.watch(inode(world.root / "srv"))
    (world.proc / f"{INIT}/root").unlink()
    assert world.named() == {}


def test_the_names_are_written_as_criu_reads_them(tmp_path: Path) -> None:
    write_names(tmp_path, [NamedInode(device=0x30, inode=0x20C308, path="/var/täg")])
    raw = (tmp_path / "irmap-cache").read_bytes()
    assert raw[:8] == bytes.fromhex("4059105559400057")
    assert int.from_bytes(raw[8:12], "little") == len(raw[12:])
    fields = protowire.decode(raw[12:])
    assert [field.value for field in fields] == [0x30, 0x20C308, "/var/täg".encode()]
