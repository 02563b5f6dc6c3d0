import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kybernate.store import Damage, Damaged, verify
from schemas import reasons
from schemas.manifest import CHUNK_BYTES, FileEntry, Manifest
from tests.support.checkpoints import PARTS, manifest_of, sealed

PART = f"containers/{PARTS[0]}"
PAGES = f"{PART}/images/pages-1.img"


def damage_of(folder: Path, manifest: Manifest) -> Damaged:
    with pytest.raises(Damaged) as caught:
        verify(folder, manifest)
    assert caught.value.reason == reasons.CHECKPOINT_DAMAGED
    assert caught.value.advice
    return caught.value


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ 1,)))


def replace(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def test_what_was_sealed_is_whole(tmp_path: Path) -> None:
    verify(tmp_path, sealed(tmp_path))


@pytest.mark.parametrize("offset", [0, 1, 4095, 350_000, 699_999])
def test_one_flipped_bit_is_found(tmp_path: Path, offset: int) -> None:
    manifest = sealed(tmp_path)
    flip(tmp_path / PAGES, offset)

    found = damage_of(tmp_path, manifest)
    assert (found.damage, found.path) == (Damage.ALTERED, PAGES)


@pytest.mark.parametrize("name", [PAGES, f"{PART}/images/inventory.img", f"{PART}/rootfs.tar"])
def test_a_flipped_bit_is_found_in_every_file(tmp_path: Path, name: str) -> None:
    manifest = sealed(tmp_path)
    flip(tmp_path / name, 3)

    assert damage_of(tmp_path, manifest).path == name


@pytest.mark.parametrize(
    ("size", "damage"),
    [(0, Damage.TRUNCATED), (699_999, Damage.TRUNCATED), (700_001, Damage.GROWN)],
)
def test_another_size_is_found(tmp_path: Path, size: int, damage: Damage) -> None:
    manifest = sealed(tmp_path)
    os.truncate(tmp_path / PAGES, size)

    found = damage_of(tmp_path, manifest)
    assert (found.damage, found.path) == (damage, PAGES)


@pytest.mark.parametrize("name", [PAGES, f"{PART}/images/fdinfo-2.img"])
def test_a_missing_file_is_found(tmp_path: Path, name: str) -> None:
    manifest = sealed(tmp_path)
    (tmp_path / name).unlink()

    found = damage_of(tmp_path, manifest)
    assert (found.damage, found.path) == (Damage.MISSING, name)


@pytest.mark.parametrize("name", ["extra", f"{PART}/images/pages-2.img", "deep/er/file"])
def test_an_added_file_is_found(tmp_path: Path, name: str) -> None:
    manifest = sealed(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"")

    found = damage_of(tmp_path, manifest)
    assert (found.damage, found.path) == (Damage.ADDED, name)


def test_a_link_in_place_of_a_file_is_found_although_the_bytes_are_the_same(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    manifest = sealed(folder)
    (folder / PAGES).rename(tmp_path / "pages")
    (folder / PAGES).symlink_to(tmp_path / "pages")

    assert damage_of(folder, manifest).damage is Damage.NOT_A_FILE


def test_a_link_in_place_of_a_folder_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    manifest = sealed(folder)
    (folder / PART).rename(tmp_path / "part")
    (folder / PART).symlink_to(tmp_path / "part")

    assert damage_of(folder, manifest).damage is Damage.ADDED


def test_a_fifo_in_place_of_a_file_is_found_and_not_waited_for(tmp_path: Path) -> None:
    manifest = sealed(tmp_path)
    replace(tmp_path / PAGES, os.mkfifo)

    assert damage_of(tmp_path, manifest).damage is Damage.NOT_A_FILE


def test_a_device_in_place_of_a_file_is_found(tmp_path: Path) -> None:
    manifest = sealed(tmp_path)
    replace(tmp_path / PAGES, lambda path: os.mknod(path, 0o20600, os.makedev(1, 5)))

    assert damage_of(tmp_path, manifest).damage is Damage.NOT_A_FILE


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../outside",
        "images/../../outside",
        "images/..",
        "/etc/shadow",
        "//etc/shadow",
        "images//pages-1.img",
        "./images/pages-1.img",
        "images/pages-1.img/",
        "manifest.json",
        "nul\0byte",
    ],
)
def test_a_path_that_is_not_below_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    manifest = manifest_of((FileEntry(path=path, size=0, chunks=()),))

    assert damage_of(tmp_path, manifest).damage is Damage.BAD_PATH


def test_a_file_listed_twice_is_refused(tmp_path: Path) -> None:
    manifest = sealed(tmp_path)
    doubled = msgspec.structs.replace(manifest, files=(*manifest.files, manifest.files[0]))

    assert damage_of(tmp_path, doubled).damage is Damage.LISTED_TWICE


@pytest.mark.parametrize(
    ("size", "chunks", "checks"),
    [(-1, 0, 0), (1, 0, 0), (1, 0, 1), (1, 1, 2), (0, 0, 1), (CHUNK_BYTES + 1, 1, 1)],
)
def test_a_number_of_digests_that_does_not_fit_the_size_is_refused(
    tmp_path: Path, size: int, chunks: int, checks: int
) -> None:
    digests = {"chunks": ("00" * 32,) * chunks, "checks": ("00" * 16,) * checks}
    manifest = manifest_of((FileEntry(path="file", size=size, **digests),))

    assert damage_of(tmp_path, manifest).damage is Damage.BAD_CHUNKS


def with_files(manifest: Manifest, change: Callable[[FileEntry], FileEntry]) -> Manifest:
    return msgspec.structs.replace(manifest, files=tuple(map(change, manifest.files)))


def test_a_manifest_of_early_versions_has_one_digest_of_each_chunk(tmp_path: Path) -> None:
    early = with_files(sealed(tmp_path), lambda entry: msgspec.structs.replace(entry, checks=()))
    verify(tmp_path, early)

    flip(tmp_path / PAGES, 4095)
    assert damage_of(tmp_path, early).damage is Damage.ALTERED


def test_the_quicker_digest_is_the_one_that_is_held_against_the_bytes(tmp_path: Path) -> None:
    def other(entry: FileEntry) -> FileEntry:
        return msgspec.structs.replace(entry, checks=("00" * 16,) * len(entry.checks))

    assert damage_of(tmp_path, with_files(sealed(tmp_path), other)).damage is Damage.ALTERED


def test_the_last_chunk_of_a_large_file_counts(tmp_path: Path) -> None:
    pages = tmp_path / PART / "images"
    pages.mkdir(parents=True)
    with (pages / "pages-7.img").open("wb") as file:
        file.truncate(2 * CHUNK_BYTES + 5)
    manifest = sealed(tmp_path)
    verify(tmp_path, manifest)

    flip(pages / "pages-7.img", 2 * CHUNK_BYTES + 4)
    found = damage_of(tmp_path, manifest)
    assert (found.damage, found.path) == (Damage.ALTERED, f"{PART}/images/pages-7.img")
    assert "chunk 2" in str(found)


def test_only_the_bytes_that_are_going_to_be_read_are_read(tmp_path: Path) -> None:
    manifest = sealed(tmp_path)
    archive = f"{PART}/rootfs.tar"
    flip(tmp_path / archive, 3)

    verify(tmp_path, manifest, lambda path: path != archive)
    with pytest.raises(Damaged):
        verify(tmp_path, manifest, lambda path: path == archive)
    (tmp_path / archive).unlink()
    with pytest.raises(Damaged):
        verify(tmp_path, manifest, lambda path: path != archive)
