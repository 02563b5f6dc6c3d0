"""A checkpoint store on a file system that fills up or turns read-only, as a real one does."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kybernate.store import CheckpointStore, Follower, StoreFull, StoreUnusable, seal
from schemas import reasons
from tests.support.checkpoints import CHECKPOINT, OTHER_CHECKPOINT, fill, manifest_of, sealed
from tests.support.mounts import mounted

KIB = 1024


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    """A store on ext4 in a file: it allocates late, so a full disk may show only at the end."""
    disk, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with disk.open("wb") as file:
        file.truncate(4 * KIB * KIB)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", disk], check=True)
    with mounted(place, "-o", "loop", str(disk)):
        yield CheckpointStore(place / "store")


def use_up(store: CheckpointStore) -> Path:
    ballast = store.root.parent / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (64 * KIB, 1):
            with contextlib.suppress(OSError):  # full, as wanted
                while file.write(b"\xaa" * size):
                    pass
    return ballast


def test_a_manifest_that_does_not_fit_makes_no_checkpoint(store: CheckpointStore) -> None:
    staging = store.staging(CHECKPOINT)
    fill(staging)
    with Follower() as follower:
        follower.start(staging)
        files = follower.finish()
    ballast = use_up(store)

    with pytest.raises(StoreFull) as caught:
        seal(staging, manifest_of(files * 100))
    assert caught.value.reason == reasons.DISK_FULL
    assert store.checkpoints() == ()

    store.discard(CHECKPOINT)
    ballast.unlink()
    sealed(store.staging(CHECKPOINT))
    store.publish(CHECKPOINT)
    assert store.checkpoints() == (CHECKPOINT,)


def test_what_is_published_survives_a_full_disk_and_can_be_deleted(
    store: CheckpointStore,
) -> None:
    sealed(store.staging(CHECKPOINT))
    store.publish(CHECKPOINT)
    use_up(store)

    assert store.free_bytes() < 64 * KIB
    assert store.checkpoints() == (CHECKPOINT,)
    store.delete(CHECKPOINT)
    assert store.free_bytes() > 900 * KIB


def test_a_folder_that_cannot_even_be_made_is_a_full_disk(store: CheckpointStore) -> None:
    store.staging(OTHER_CHECKPOINT)
    use_up(store)
    with pytest.raises(StoreFull):
        scratch_folders(store, 10_000)


def test_a_disk_that_turned_read_only_is_told_though_it_has_room(store: CheckpointStore) -> None:
    """As a kernel remounts a file system that has errors; root's rights do not help."""
    disk = store.root.parent
    assert store.free_bytes() > 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(StoreUnusable, match="Read-only file system") as told:
        store.free_bytes()
    assert str(store.root) in str(told.value)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert store.free_bytes() > 0


def scratch_folders(store: CheckpointStore, count: int) -> None:
    for number in range(count):
        store.scratch(f"job.{number}")
