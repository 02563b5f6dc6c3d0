"""Changes of files: planned as data, shown as a diff, made in one piece each, taken back."""

import contextlib
import difflib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from schemas.base import Record


class Change(Record, frozen=True, kw_only=True):
    """What a file is to hold; None: it is not to be there."""

    path: Path
    before: bytes | None
    after: bytes | None
    mode: int | None = None
    """None: as it was, or 0644."""


def read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def planned(path: Path, after: bytes | None, mode: int | None = None) -> list[Change]:
    """The change that takes the file there; none where it is so already."""
    before = read(path)
    if before == after and (mode is None or before is None or _mode(path) == mode):
        return []
    return [Change(path=path, before=before, after=after, mode=mode)]


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def make(changes: Iterable[Change]) -> None:
    for change in changes:
        _put(change.path, change.after, change.mode)


def take_back(changes: Sequence[Change]) -> None:
    for change in reversed(changes):
        _put(change.path, change.before, change.mode)


def _put(path: Path, content: bytes | None, mode: int | None) -> None:
    """A reader sees the old file or the new one; a file that is there keeps its owner and mode."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.resolve()  # a link stays one
    handle, draft = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            owner = target.stat()
            os.chown(draft, owner.st_uid, owner.st_gid)
            mode = _mode(target) if mode is None else mode
        Path(draft).chmod(0o644 if mode is None else mode)
        Path(draft).rename(target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def clear_folders(folders: Iterable[Path]) -> None:
    """Remove those that are empty; what somebody else has put there stays."""
    for folder in folders:
        with contextlib.suppress(OSError):  # not there, or not empty
            folder.rmdir()


def named(change: Change) -> str:
    """The change in a line."""
    return f"{'remove' if change.after is None else 'write'} {change.path}\n"


def shown(change: Change) -> str:
    """The change of a text, line by line."""
    sides = (change.before, change.after)
    before, after = ((side or b"").decode(errors="replace").splitlines() for side in sides)
    was, will = ("/dev/null" if side is None else str(change.path) for side in sides)
    lines = difflib.unified_diff(before, after, was, will, lineterm="")
    return "".join(f"{line}\n" for line in lines)
