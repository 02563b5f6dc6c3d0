import contextlib
import gc
import os
import threading
import time
from pathlib import Path

import pytest
from blake3 import blake3
from xxhash import xxh3_128

from kybernate.store import Damage, Damaged, Follower, StoreError
from schemas.manifest import CHUNK_BYTES, IMAGES_FOLDER, FileEntry, part_folder
from tests.support.checkpoints import fill

IMAGES = f"{part_folder('counter')}/{IMAGES_FOLDER}"
MIB = 1024 * 1024


def expected(folder: Path, path: str) -> FileEntry:
    raw = (folder / path).read_bytes()
    pieces = [raw[start : start + CHUNK_BYTES] for start in range(0, len(raw), CHUNK_BYTES)]
    return FileEntry(
        path=path,
        size=len(raw),
        chunks=tuple(blake3(piece).hexdigest() for piece in pieces),
        checks=tuple(xxh3_128(piece).hexdigest() for piece in pieces),
    )


def all_expected(folder: Path) -> tuple[FileEntry, ...]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(expected(folder, path.relative_to(folder).as_posix()) for path in files)


def append_slowly(path: Path, total: int) -> None:
    """Append as CRIU does, in pieces that end anywhere, slow enough to be followed."""
    block = os.urandom(MIB + 4096)
    with path.open("ab", buffering=0) as file:
        while (room := total - file.tell()) > 0:
            file.write(block[:room])
            time.sleep(0.002)


def open_below(folder: Path) -> list[Path]:
    """Its files that this process holds open; what else it holds comes and goes."""
    held: list[Path] = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed while we looked
            held.append(descriptor.readlink())
    return [path for path in held if path.is_relative_to(folder)]


@pytest.mark.parametrize("size", [5 * MIB, CHUNK_BYTES, CHUNK_BYTES + 9 * MIB + 1])
def test_files_that_grow_while_followed_get_the_digests_of_their_final_bytes(
    tmp_path: Path, size: int
) -> None:
    images = tmp_path / IMAGES
    with Follower() as follower:
        follower.start(tmp_path)
        images.mkdir(parents=True)
        writers = [
            threading.Thread(target=append_slowly, args=(images / f"pages-{number}.img", size))
            for number in (1, 2)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        (images / "core-1.img").write_bytes(b"core")
        entries = follower.finish()

    assert entries == all_expected(tmp_path)
    assert open_below(tmp_path) == []


def test_a_dump_that_is_over_before_it_is_seen_is_hashed_all_the_same(tmp_path: Path) -> None:
    with Follower() as follower:
        follower.start(tmp_path)
        fill(tmp_path)
        assert follower.finish() == all_expected(tmp_path)


def test_an_empty_file_has_no_chunks(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with Follower() as follower:
        follower.start(tmp_path)
        assert follower.finish() == (FileEntry(path="empty", size=0, chunks=()),)


def test_the_manifest_is_not_listed_in_itself(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    with Follower() as follower:
        follower.start(tmp_path)
        assert follower.finish() == ()


def test_a_sparse_file_is_hashed_as_its_bytes(tmp_path: Path) -> None:
    (tmp_path / IMAGES).mkdir(parents=True)
    with (tmp_path / IMAGES / "pages-1.img").open("wb") as file:
        file.truncate(10 * MIB)
    with Follower() as follower:
        follower.start(tmp_path)
        assert follower.finish() == all_expected(tmp_path)


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_no_file_cannot_be_sealed(tmp_path: Path, kind: str) -> None:
    if kind == "link":
        (tmp_path / "odd").symlink_to("/etc/passwd")
    else:
        os.mkfifo(tmp_path / "odd")
    with Follower() as follower:
        follower.start(tmp_path)
        with pytest.raises(Damaged) as caught:
            follower.finish()
    assert (caught.value.damage, caught.value.path) == (Damage.NOT_A_FILE, "odd")


def test_trouble_while_following_is_told_at_the_end(tmp_path: Path) -> None:
    images = tmp_path / IMAGES
    images.mkdir(parents=True)
    (images / "pages-1.img").symlink_to(images / "nowhere")
    with Follower() as follower:
        follower.start(tmp_path)
        time.sleep(0.05)
        with pytest.raises(StoreError):
            follower.finish()


def test_stopping_ends_the_threads_and_closes_the_files(tmp_path: Path) -> None:
    fill(tmp_path)
    before = set(threading.enumerate())
    follower = Follower()
    follower.start(tmp_path)
    time.sleep(0.05)
    follower.stop()
    follower.stop()
    assert set(threading.enumerate()) <= before
    assert open_below(tmp_path) == []


def test_a_forgotten_one_ends_its_thread(tmp_path: Path) -> None:
    (tmp_path / IMAGES).mkdir(parents=True)
    follower = Follower()
    follower.start(tmp_path)
    thread = follower._thread
    assert thread is not None

    del follower
    gc.collect()

    thread.join(timeout=30)
    assert not thread.is_alive()
