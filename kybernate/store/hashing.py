"""BLAKE3 of files, chunk by chunk, on all cores.

Pages are mapped a window at a time and populated before they are touched: half the time of copying
them out, and a disk error becomes an exception, not a SIGBUS. Where mapping is refused, reading
does. The hash and the population release the GIL, so threads are enough.
"""

import errno
import mmap
import os
from typing import Final

from blake3 import blake3

from schemas.manifest import CHUNK_BYTES

WINDOW: Final = 8 * 1024 * 1024
_SMALL: Final = 256 * 1024
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ, which Python's mmap does not name yet


class Shrunk(OSError):
    """The file ended before its size said so: somebody shortened it meanwhile."""


class ChunkHash:
    """The running hash of one chunk of a file, which may still be growing."""

    def __init__(self, start: int) -> None:
        self.position = start
        self.limit = start + CHUNK_BYTES
        self._hasher = blake3()

    def advance(self, descriptor: int, end: int) -> None:
        """Take in what the file holds up to `end`, no further than the chunk reaches."""
        end = min(end, self.limit)
        while self.position < end:
            step = min(WINDOW, end - self.position)
            _feed(self._hasher, descriptor, self.position, step)
            self.position += step

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


def chunk_count(size: int) -> int:
    return -(-size // CHUNK_BYTES)


def hash_chunk(descriptor: int, index: int, size: int) -> str:
    chunk = ChunkHash(index * CHUNK_BYTES)
    chunk.advance(descriptor, size)
    return chunk.hexdigest()


def digest_of(raw: bytes) -> str:
    return blake3(raw).hexdigest()


def cores() -> int:
    return len(os.sched_getaffinity(0))


def _feed(hasher: blake3, descriptor: int, start: int, length: int) -> None:
    if length <= _SMALL or start % mmap.ALLOCATIONGRANULARITY:
        _feed_by_reading(hasher, descriptor, start, length)
        return
    try:
        window = mmap.mmap(descriptor, length, prot=mmap.PROT_READ, offset=start)
    except (OSError, ValueError):  # no mapping on this file system, or the file has shrunk
        _feed_by_reading(hasher, descriptor, start, length)
        return
    with window:
        if _populated(window):
            hasher.update(window)
        else:
            _feed_by_reading(hasher, descriptor, start, length)


def _populated(window: mmap.mmap) -> bool:
    try:
        window.madvise(_POPULATE_READ)
    except OSError:  # a kernel before 5.14, or pages that cannot be read: reading tells which
        return False
    return True


def _feed_by_reading(hasher: blake3, descriptor: int, start: int, length: int) -> None:
    end = start + length
    while start < end:
        piece = os.pread(descriptor, min(_SMALL, end - start), start)
        if not piece:
            raise Shrunk(errno.EIO, "a file became shorter while it was read")
        hasher.update(piece)
        start += len(piece)
