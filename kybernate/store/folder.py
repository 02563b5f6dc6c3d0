"""Where checkpoints lie on a node: one folder each, made aside, published by one rename.

`ROOT/.aside/NAME` is work in progress and worth nothing; `ROOT/ID` is a checkpoint, durable and
complete from the moment it is there. All calls block: make them in a thread.
"""

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Final
from uuid import UUID

from kybernate.store.errors import (
    CheckpointExists,
    InvalidCheckpointId,
    NoSuchCheckpoint,
    StoreError,
    disk_errors,
)
from kybernate.store.manifest import read_manifest
from kybernate.store.sync import sync_folder, sync_tree
from schemas.manifest import MANIFEST_NAME

_ASIDE: Final = ".aside"
_PRIVATE: Final = 0o700
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class CheckpointStore:
    """The checkpoints below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def staging(self, checkpoint: str) -> Path:
        """A new, empty folder to make the checkpoint in; what an earlier try left is removed."""
        return self._fresh(_checked(checkpoint))

    def scratch(self, job: str) -> Path:
        """A new, empty folder for one job, on the file system of the checkpoints."""
        return self._fresh(_scratch_of(job))

    def publish(self, checkpoint: str) -> Path:
        """Make the sealed folder durable, then visible: afterwards it is a checkpoint."""
        made, place = self._aside(_checked(checkpoint)), self.root / checkpoint
        if not (made / MANIFEST_NAME).is_file():
            raise StoreError(f"{made} was never sealed: it holds no {MANIFEST_NAME}")
        if place.exists():
            raise CheckpointExists(f"checkpoint {checkpoint} is already there")
        with disk_errors("publish", made):
            sync_tree(made)
            made.rename(place)
            sync_folder(self.root)
            sync_folder(made.parent)
        return place

    def folder(self, checkpoint: str) -> Path:
        """The folder of a published checkpoint."""
        place = self.root / _checked(checkpoint)
        if place.is_symlink() or not (place / MANIFEST_NAME).is_file():
            raise NoSuchCheckpoint(f"there is no checkpoint {checkpoint} below {self.root}")
        return place

    def checkpoints(self) -> tuple[str, ...]:
        """The ids of all checkpoints that have a readable manifest."""
        with disk_errors("list", self.root):
            names = _names(self.root)
        return tuple(name for name in names if self._is_checkpoint(name))

    def delete(self, checkpoint: str) -> None:
        """Remove a checkpoint: gone at once as one, then its files; no error when it is not there.

        What is there without a manifest is removed as well: it is not a checkpoint.
        """
        place, aside = self.root / _checked(checkpoint), self._aside(f"{checkpoint}.deleted")
        with disk_errors("delete", place):
            _remove(aside)
            if not place.exists():
                return
            self._make_aside()
            place.rename(aside)
            sync_folder(self.root)
            _remove(aside)

    def discard(self, name: str) -> None:
        """Remove what lies aside under this name, if it does: a checkpoint's id or a leftover."""
        if name != Path(name).name or name in {"", ".", ".."}:
            raise InvalidCheckpointId(f"{name!r} is not the name of something aside")
        with disk_errors("remove", self._aside(name)):
            _remove(self._aside(name))

    def discard_scratch(self, job: str) -> None:
        self.discard(_scratch_of(job))

    def leftovers(self) -> tuple[str, ...]:
        """What lies aside: after a crash, everything that no job of the ledger is about to go on
        with can be discarded by these names.
        """
        aside = self.root / _ASIDE
        with disk_errors("list", aside):
            return tuple(_names(aside))

    def free_bytes(self) -> int:
        """What an unprivileged writer could still store; root's reserve is left alone.

        StoreUnusable where nothing can be written, though there be room.
        """
        with disk_errors("write into", self.root):
            self._make_aside()
            for folder in (self.root, self.root / _ASIDE):
                _check_writable(folder)
            room = os.statvfs(self.root)
        return room.f_bavail * room.f_frsize

    def _fresh(self, name: str) -> Path:
        place = self._aside(name)
        with disk_errors("prepare", place):
            self._make_aside()
            _remove(place)
            place.mkdir(mode=_PRIVATE)
        return place

    def _aside(self, name: str) -> Path:
        return self.root / _ASIDE / name

    def _make_aside(self) -> None:
        self.root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        (self.root / _ASIDE).mkdir(mode=_PRIVATE, exist_ok=True)

    def _is_checkpoint(self, name: str) -> bool:
        try:
            return read_manifest(self.folder(name)).id == name
        except StoreError:
            return False


def _checked(checkpoint: str) -> str:
    """The id, if it is a UUID as a UUID is printed: nothing else may become part of a path."""
    try:
        printed = str(UUID(checkpoint))
    except ValueError:
        printed = ""
    if printed != checkpoint or not printed:
        raise InvalidCheckpointId(f"{checkpoint!r} is not a checkpoint's id")
    return printed


def _scratch_of(job: str) -> str:
    if not _PLAIN.fullmatch(job):
        raise InvalidCheckpointId(f"{job!r} is not a job's id")
    return f"{job}.scratch"


def _check_writable(folder: Path) -> None:
    """Root may write anywhere but on what is read-only: a mount, a disk after errors."""
    if not os.access(folder, os.W_OK | os.X_OK):
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
        raise OSError(code, os.strerror(code), str(folder))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def _remove(place: Path) -> None:
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
