"""Proves that a checkpoint's folder is what was sealed, before anything of it is restored.

First the names, kinds and sizes, which costs nothing; then every byte, on all cores. Nothing but
the files of the manifest may be there, and links are never followed.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from kybernate.store.errors import Damage, Damaged, disk_errors
from kybernate.store.hashing import Shrunk, check, chunk_count, cores, hash_chunk, identity
from kybernate.store.sync import opened
from schemas.manifest import CHUNK_BYTES, MANIFEST_NAME, FileEntry, Manifest

_BATCH_BYTES: Final = 1024 * 1024


class _Chunk(NamedTuple):
    entry: FileEntry
    number: int

    @property
    def length(self) -> int:
        return min(CHUNK_BYTES, self.entry.size - self.number * CHUNK_BYTES)


def verify(
    folder: Path,
    manifest: Manifest,
    only: Callable[[str], bool] | None = None,
    *,
    threads: int = 0,
) -> None:
    """Return when the folder is whole; Damaged names a difference that was found.

    `only`: whose bytes are looked at, by path. Names, kinds and sizes are those of all.
    `threads`: at most so many; default: one for each core.
    """
    with disk_errors("verify", folder):
        entries = _expected(manifest)
        _check_listing(folder, entries)
        wanted = [entry for path, entry in entries.items() if not only or only(path)]
        _check_bytes(folder, wanted, threads or cores())


def _expected(manifest: Manifest) -> dict[str, FileEntry]:
    entries: dict[str, FileEntry] = {}
    for entry in manifest.files:
        if not _is_below(entry.path):
            raise Damaged(Damage.BAD_PATH, repr(entry.path))
        if entry.path in entries:
            raise Damaged(Damage.LISTED_TWICE, entry.path)
        if entry.size < 0 or not _has_all_digests(entry):
            raise Damaged(Damage.BAD_CHUNKS, entry.path)
        entries[entry.path] = entry
    return entries


def _has_all_digests(entry: FileEntry) -> bool:
    wanted = chunk_count(entry.size)
    return len(entry.chunks) == wanted and len(entry.checks) in {wanted, 0}


def _is_below(path: str) -> bool:
    """Whether it is a plain relative path, written the one way that the sealing writes it."""
    if not path or "\0" in path or path == MANIFEST_NAME:
        return False
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and str(pure) == path != "."


def _check_listing(folder: Path, entries: dict[str, FileEntry]) -> None:
    missing = set(entries)
    for path, status in _contents(folder):
        if path == MANIFEST_NAME:
            continue
        if path not in entries:
            raise Damaged(Damage.ADDED, path)
        _check_size(entries[path], status)
        missing.remove(path)
    if missing:
        raise Damaged(Damage.MISSING, min(missing))


def _check_size(entry: FileEntry, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Damaged(Damage.NOT_A_FILE, entry.path)
    if status.st_size != entry.size:
        detail = f"{status.st_size} bytes, not {entry.size}"
        damage = Damage.TRUNCATED if status.st_size < entry.size else Damage.GROWN
        raise Damaged(damage, entry.path, detail)


def _contents(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below the folder that is no folder itself; a link to one is none."""
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as found:
            for item in found:
                if item.is_dir(follow_symlinks=False):
                    pending.append(Path(item.path))
                else:
                    path = Path(item.path).relative_to(folder).as_posix()
                    yield path, item.stat(follow_symlinks=False)


def _check_bytes(folder: Path, entries: Iterable[FileEntry], threads: int) -> None:
    """Large chunks first, so that the cores end together; small files go in batches."""
    chunks = [_Chunk(entry, number) for entry in entries for number in range(len(entry.chunks))]
    chunks.sort(key=lambda chunk: chunk.length, reverse=True)
    batches = list(_batches(chunks))
    if len(batches) == 1:
        _check_chunks(folder, batches[0])
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="store-verify") as pool:
        works = [pool.submit(_check_chunks, folder, batch) for batch in batches]
        try:
            for work in as_completed(works):
                work.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _batches(chunks: list[_Chunk]) -> Iterator[list[_Chunk]]:
    batch: list[_Chunk] = []
    for chunk in chunks:
        batch.append(chunk)
        if sum(one.length for one in batch) >= _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_chunks(folder: Path, chunks: list[_Chunk]) -> None:
    for entry, number in chunks:
        try:
            with opened(folder / entry.path) as descriptor:
                _check_size(entry, os.fstat(descriptor))
                whole = _is_whole(descriptor, entry, number)
        except Shrunk as error:
            raise Damaged(Damage.TRUNCATED, entry.path) from error
        if not whole:
            raise Damaged(Damage.ALTERED, entry.path, f"in its chunk {number}")


def _is_whole(descriptor: int, entry: FileEntry, number: int) -> bool:
    """By the quicker digest, which manifests did not have at first."""
    digests, hasher = (entry.checks, check()) if entry.checks else (entry.chunks, identity())
    return hash_chunk(descriptor, number, entry.size, hasher) == digests[number]
