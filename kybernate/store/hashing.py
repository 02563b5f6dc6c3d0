"""Digests of files, chunk by chunk, on all cores: BLAKE3 for what they are, XXH3 against decay.

Reading and hashing release the GIL, so threads are enough. Files are read, not mapped: mapping
costs more processor time, and makes a signal of a disk error.
"""

import errno
import os
from typing import Final, Protocol

from blake3 import blake3
from xxhash import xxh3_128

from schemas.manifest import CHUNK_BYTES

PIECE: Final = 1024 * 1024
"""What is read at once: larger ones leave the processor's caches before they are hashed."""


class Shrunk(OSError):
    """The file ended before its size said so: somebody shortened it meanwhile."""


class Hasher(Protocol):
    def update(self, data: bytes, /) -> object: ...

    def hexdigest(self) -> str: ...


def identity() -> Hasher:
    """Of what a chunk is: nobody can make another one of the same."""
    return blake3()


def check() -> Hasher:
    """Of whether a chunk is still what it was: a third of the processor time, reading included."""
    return xxh3_128()


class ChunkHash:
    """One chunk of a file, which may still be growing, taken in by one or more hashers."""

    def __init__(self, start: int, *hashers: Hasher) -> None:
        self.position = start
        self.limit = start + CHUNK_BYTES
        self._hashers = hashers

    def advance(self, descriptor: int, end: int) -> None:
        """Take in what the file holds up to `end`, no further than the chunk reaches."""
        end = min(end, self.limit)
        while self.position < end:
            piece = os.pread(descriptor, min(PIECE, end - self.position), self.position)
            if not piece:
                raise Shrunk(errno.EIO, "a file became shorter while it was read")
            for hasher in self._hashers:
                hasher.update(piece)
            self.position += len(piece)

    def hexdigests(self) -> tuple[str, ...]:
        return tuple(hasher.hexdigest() for hasher in self._hashers)


def chunk_count(size: int) -> int:
    return -(-size // CHUNK_BYTES)


def hash_chunk(descriptor: int, index: int, size: int, hasher: Hasher) -> str:
    ChunkHash(index * CHUNK_BYTES, hasher).advance(descriptor, size)
    return hasher.hexdigest()


def digest_of(raw: bytes) -> str:
    return blake3(raw).hexdigest()


def cores() -> int:
    return len(os.sched_getaffinity(0))
