"""Hashes a dump while it is being written.

CRIU only appends to `pages-*.img`, so what lies below a file's current size will not change. A
thread of its own polls those files, has the kernel write them out, and advances the hashes of
their chunks on a small pool; `finish` then has little left to hash and little left to sync. All
other files are hashed by `finish`, which must be called when nobody writes any more.
"""

import os
import stat
import threading
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, Self

from kybernate.store.errors import Damage, Damaged, disk_errors
from kybernate.store.hashing import PIECE, ChunkHash, check, chunk_count, cores, identity
from kybernate.store.sync import start_writing, tighten
from schemas.manifest import (
    CHUNK_BYTES,
    IMAGES_FOLDER,
    MANIFEST_NAME,
    PARTS_FOLDER,
    FileEntry,
)

_PAGES: Final = f"{PARTS_FOLDER}/*/{IMAGES_FOLDER}/pages-*.img"
_POLL_SECONDS: Final = 0.004
_NO_LINK: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Follower:
    """From `start` to `finish` or `stop`; as a context manager it stops whatever happens."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="store-hash")
        self._followed: dict[Path, _Followed] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._folder = Path()
        self._problem: BaseException | None = None

    def start(self, folder: Path) -> None:
        """Follow the page files that appear among the images; returns at once."""
        self._folder = folder
        self._thread = threading.Thread(
            target=_follow, args=(weakref.ref(self), self._over), name="store-follower", daemon=True
        )
        self._thread.start()

    def finish(self) -> tuple[FileEntry, ...]:
        """Every file of the folder but the manifest, hashed and on its way to the disk."""
        self._halt()
        try:
            with disk_errors("hash", self._folder):
                if self._problem is not None:
                    raise self._problem
                return self._entries()
        finally:
            self.stop()

    def stop(self) -> None:
        """Let go of everything; may be called at any time and again."""
        self._halt()
        self._pool.shutdown()
        while self._followed:
            self._followed.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _halt(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """One round; a problem ends the following and is told by `finish`."""
        try:
            self._round()
        except BaseException as error:  # noqa: BLE001 - told by finish, in the caller's thread
            self._problem = error
            self._over.set()

    def _round(self) -> None:
        for path in self._folder.glob(_PAGES):
            self._open(path)
        for followed in self._followed.values():
            followed.look()
        self._advance(self._followed.values())

    def _open(self, path: Path) -> "_Followed":
        if path not in self._followed:
            self._followed[path] = _Followed(path)
        return self._followed[path]

    def _entries(self) -> tuple[FileEntry, ...]:
        paths = sorted(_regular_files(self._folder))
        for path in paths:
            self._open(path).complete()
        files = [self._followed[path] for path in paths]
        self._advance(files)
        return tuple(file.entry(self._folder) for file in files)

    def _advance(self, files: Iterable["_Followed"]) -> None:
        """Wait for every chunk, so that none is ever advanced twice at the same time."""
        works = [
            self._pool.submit(file.advance, chunk) for file in files for chunk in file.lagging()
        ]
        wait(works)
        for work in works:
            work.result()


def _follow(following: weakref.ref[Follower], over: threading.Event) -> None:
    """Round after round, for as long as somebody still holds the follower."""
    while not over.wait(_POLL_SECONDS):
        if (follower := following()) is None:
            return
        follower.look()
        del follower


class _Followed:
    """One file, its chunks' hashes, and how far it was seen to reach."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, _NO_LINK)
        self._size = 0
        self._hashable = 0
        self._chunks: list[ChunkHash] = []

    def look(self) -> None:
        """See how far a growing file reaches; its last, incomplete piece has to wait."""
        size = os.fstat(self._descriptor).st_size
        start_writing(self._descriptor, self._size, size - self._size)
        self._reaches(size, size - size % PIECE)

    def complete(self) -> None:
        """See how far the file reaches for good."""
        size = os.fstat(self._descriptor).st_size
        start_writing(self._descriptor, 0, 0)
        tighten(self._descriptor)
        self._reaches(size, size)

    def lagging(self) -> Iterator[ChunkHash]:
        for chunk in self._chunks:
            if chunk.position < min(chunk.limit, self._hashable):
                yield chunk

    def advance(self, chunk: ChunkHash) -> None:
        chunk.advance(self._descriptor, self._hashable)

    def entry(self, folder: Path) -> FileEntry:
        digests = [chunk.hexdigests() for chunk in self._chunks]
        return FileEntry(
            path=self._path.relative_to(folder).as_posix(),
            size=self._size,
            chunks=tuple(identity for identity, _ in digests),
            checks=tuple(check for _, check in digests),
        )

    def close(self) -> None:
        os.close(self._descriptor)

    def _reaches(self, size: int, hashable: int) -> None:
        self._size, self._hashable = size, hashable
        while len(self._chunks) < chunk_count(size):
            start = len(self._chunks) * CHUNK_BYTES
            self._chunks.append(ChunkHash(start, identity(), check()))


def _regular_files(folder: Path) -> Iterator[Path]:
    for below, _, names in os.walk(folder):
        for name in names:
            path = Path(below, name)
            if path == folder / MANIFEST_NAME:
                continue
            if not stat.S_ISREG(path.lstat().st_mode):
                raise Damaged(Damage.NOT_A_FILE, path.relative_to(folder).as_posix())
            yield path
