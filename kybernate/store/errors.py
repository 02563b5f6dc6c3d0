"""What can be wrong with a checkpoint at rest, each with its reason and what to do about it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from kybernate.problems import Expected
from schemas import reasons


class Damage(StrEnum):
    """How a folder differs from what its manifest says."""

    ADDED = "is not in the manifest"
    MISSING = "is missing"
    TRUNCATED = "is shorter than the manifest says"
    GROWN = "is longer than the manifest says"
    ALTERED = "does not hold the bytes that were sealed"
    NOT_A_FILE = "is no regular file"
    BAD_PATH = "is no path below the checkpoint's folder"
    LISTED_TWICE = "is listed twice in the manifest"
    BAD_CHUNKS = "has not as many digests in the manifest as its size needs"
    BAD_MANIFEST = "cannot be read as a manifest"
    OTHER_MANIFEST = "is not the manifest that was recorded when the checkpoint was made"
    OTHER_CHECKPOINT = "describes another checkpoint than the folder's name says"


class StoreError(Expected):
    """The checkpoint store could not do what was asked."""

    reason: str = reasons.INTERNAL
    advice: str = ""


class NoSuchCheckpoint(StoreError):
    """There is no durable checkpoint of that id on this node."""

    reason = reasons.CHECKPOINT_MISSING
    advice = "List what there is with `kybernate get checkpoints`."


class InvalidCheckpointId(StoreError):
    """A checkpoint's id is a UUID in lower case; nothing else becomes a folder's name."""

    reason = reasons.INVALID_REQUEST
    advice = "Use the id as `kybernate get checkpoints` prints it."


class CheckpointExists(StoreError):
    """A durable checkpoint of that id is already there; it is never overwritten."""

    reason = reasons.ALREADY_EXISTS
    advice = "Delete the old checkpoint or use another id."


class UnknownFormat(StoreError):
    """The checkpoint was written in a format that this version does not read."""

    reason = reasons.UNKNOWN_FORMAT
    advice = "Restore it with the version of Kybernate that wrote it, or update this one."


class Damaged(StoreError):
    """The folder is not what was sealed: nothing of it may be restored."""

    reason = reasons.CHECKPOINT_DAMAGED
    advice = "Restore from another checkpoint, and look at the disk that held this one."

    def __init__(self, damage: Damage, path: str, detail: str = "") -> None:
        super().__init__(f"{path} {damage}{': ' if detail else ''}{detail}")
        self.damage = damage
        self.path = path


class StoreFull(StoreError):
    """The file system of the checkpoint store has no room left."""

    reason = reasons.DISK_FULL
    advice = "Free space, delete checkpoints, or move the store to a larger file system."


class StoreUnusable(StoreError):
    """The file system of the checkpoint store refuses to read or to write."""

    reason = reasons.STORE_UNUSABLE
    advice = "Look at the disk, its mount and the rights of the store's folder."


_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Tell an error of the file system as one of the store, with what was being done."""
    try:
        yield
    except OSError as error:
        kind = StoreFull if error.errno in _NO_ROOM else StoreUnusable
        raise kind(f"cannot {doing} {path}: {error.strerror or error}") from error
