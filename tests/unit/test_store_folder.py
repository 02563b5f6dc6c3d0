import errno
import stat
from pathlib import Path

import pytest

from kybernate.store import (
    CheckpointExists,
    CheckpointStore,
    Damage,
    Damaged,
    InvalidCheckpointId,
    NoSuchCheckpoint,
    StoreError,
    StoreFull,
    StoreUnusable,
    UnknownFormat,
    disk_errors,
    manifest_digest,
    read_manifest,
    seal,
    verify,
)
from schemas import reasons
from schemas.manifest import MANIFEST_NAME
from tests.support.checkpoints import CHECKPOINT, OTHER_CHECKPOINT, fill, manifest_of, sealed

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def publish(store: CheckpointStore, checkpoint: str = CHECKPOINT) -> Path:
    sealed(store.staging(checkpoint), checkpoint)
    return store.publish(checkpoint)


def modes(folder: Path) -> set[tuple[bool, int]]:
    found = [folder, *folder.rglob("*")]
    return {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in found}


def test_a_published_checkpoint_is_found_whole_and_private(store: CheckpointStore) -> None:
    staging = store.staging(CHECKPOINT)
    manifest = sealed(staging)
    for path in staging.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)

    place = store.publish(CHECKPOINT)

    assert store.folder(CHECKPOINT) == place
    assert store.checkpoints() == (CHECKPOINT,)
    assert read_manifest(place) == manifest
    assert modes(place) == {(True, 0o700), (False, 0o600)}
    assert store.leftovers() == ()
    verify(place, manifest)


def test_what_is_only_staged_is_no_checkpoint(store: CheckpointStore) -> None:
    sealed(store.staging(CHECKPOINT))

    assert store.checkpoints() == ()
    assert store.leftovers() == (CHECKPOINT,)
    with pytest.raises(NoSuchCheckpoint):
        store.folder(CHECKPOINT)


def test_a_folder_without_a_manifest_is_not_published(store: CheckpointStore) -> None:
    fill(store.staging(CHECKPOINT))

    with pytest.raises(StoreError, match="never sealed"):
        store.publish(CHECKPOINT)
    assert store.checkpoints() == ()


def test_a_published_checkpoint_is_never_overwritten(store: CheckpointStore) -> None:
    place = publish(store)
    before = manifest_digest(place)
    sealed(store.staging(CHECKPOINT))

    with pytest.raises(CheckpointExists):
        store.publish(CHECKPOINT)
    assert manifest_digest(place) == before


def test_staging_starts_empty_after_an_interrupted_try(store: CheckpointStore) -> None:
    fill(store.staging(CHECKPOINT))

    assert list(store.staging(CHECKPOINT).iterdir()) == []


def test_deleting_removes_one_checkpoint_and_may_be_repeated(store: CheckpointStore) -> None:
    publish(store)
    publish(store, OTHER_CHECKPOINT)

    store.delete(CHECKPOINT)
    store.delete(CHECKPOINT)

    assert store.checkpoints() == (OTHER_CHECKPOINT,)
    assert store.leftovers() == ()


def test_a_folder_that_lost_its_manifest_is_no_checkpoint_but_can_be_deleted(
    store: CheckpointStore,
) -> None:
    place = publish(store)
    (place / MANIFEST_NAME).unlink()

    assert store.checkpoints() == ()
    store.delete(CHECKPOINT)
    assert not place.exists()


def test_a_half_deleted_checkpoint_is_a_leftover_that_can_be_discarded(
    store: CheckpointStore,
) -> None:
    place = publish(store)
    place.rename(store.root / ".aside" / f"{CHECKPOINT}.deleted")

    (leftover,) = store.leftovers()
    store.discard(leftover)

    assert store.leftovers() == ()


def test_every_job_has_a_scratch_folder_of_its_own(store: CheckpointStore) -> None:
    staging = store.staging(CHECKPOINT)
    first, second = store.scratch(f"{CHECKPOINT}.1"), store.scratch(f"{CHECKPOINT}.2")

    store.discard_scratch(f"{CHECKPOINT}.1")
    store.discard_scratch(f"{CHECKPOINT}.1")

    assert not first.exists()
    assert second.exists()
    assert staging.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc", "a/b", ".x", "x\n"])
def test_only_a_job_s_id_becomes_a_scratch_folder(store: CheckpointStore, name: str) -> None:
    with pytest.raises(InvalidCheckpointId):
        store.scratch(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc", "a/b", CHECKPOINT.upper(), CHECKPOINT + "\n", CHECKPOINT + "/"],
)
def test_only_a_checkpoints_id_becomes_a_path(store: CheckpointStore, name: str) -> None:
    for call in (store.staging, store.publish, store.folder, store.delete):
        with pytest.raises(InvalidCheckpointId):
            call(name)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc", "a/b"])
def test_only_something_aside_is_discarded(store: CheckpointStore, name: str) -> None:
    with pytest.raises(InvalidCheckpointId):
        store.discard(name)


def test_a_link_is_no_checkpoint(store: CheckpointStore, tmp_path: Path) -> None:
    elsewhere = publish(CheckpointStore(tmp_path / "elsewhere"))
    store.root.mkdir()
    (store.root / CHECKPOINT).symlink_to(elsewhere)

    with pytest.raises(NoSuchCheckpoint):
        store.folder(CHECKPOINT)
    assert store.checkpoints() == ()


def test_free_bytes_is_what_the_file_system_has(store: CheckpointStore) -> None:
    assert store.free_bytes() > 0


def test_a_manifest_is_read_only_under_its_digest(store: CheckpointStore) -> None:
    place = publish(store)
    digest = manifest_digest(place)

    assert read_manifest(place, digest=digest).id == CHECKPOINT
    with pytest.raises(Damaged) as caught:
        read_manifest(place, digest="0" * 64)
    assert caught.value.damage is Damage.OTHER_MANIFEST


def test_the_same_manifest_has_the_same_digest(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        digests.add(seal(tmp_path / name, manifest_of(())))
    assert len(digests) == 1


def test_a_folder_is_sealed_once(tmp_path: Path) -> None:
    seal(tmp_path, manifest_of(()))
    with pytest.raises(StoreError):
        seal(tmp_path, manifest_of(()))


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b'{"version":2}', b"[]", b'{"id":3}'])
def test_a_manifest_that_cannot_be_read_is_damage(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(raw)

    with pytest.raises(Damaged) as caught:
        read_manifest(tmp_path)
    assert caught.value.damage is Damage.BAD_MANIFEST
    assert caught.value.reason == reasons.CHECKPOINT_DAMAGED


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(b'{"version":1,"files":[]}')

    with pytest.raises(UnknownFormat, match="version 1"):
        read_manifest(tmp_path)


def test_a_missing_manifest_means_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NoSuchCheckpoint):
        read_manifest(tmp_path)


def test_a_manifest_that_is_a_link_is_not_followed(store: CheckpointStore, tmp_path: Path) -> None:
    place = publish(store)
    (tmp_path / MANIFEST_NAME).symlink_to(place / MANIFEST_NAME)

    with pytest.raises(Damaged):
        read_manifest(tmp_path)


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    full = Path("/dev/full")
    with (
        pytest.raises(StoreFull, match="No space left") as caught,
        disk_errors("write", tmp_path),
        full.open("wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert caught.value.reason == reasons.DISK_FULL


def test_a_disk_that_cannot_be_written_has_a_reason_of_its_own(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreUnusable, match="Read-only file system") as told,
        disk_errors("write", tmp_path),
    ):
        raise OSError(errno.EROFS, "Read-only file system")
    assert told.value.reason == reasons.STORE_UNUSABLE
