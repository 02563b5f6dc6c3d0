"""All that can be seen of a tree of files."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Any


def picture(root: Path) -> dict[str, tuple[Any, ...]]:
    """All that a process can see of a tree; hard links by the names that share a file."""
    seen: dict[str, tuple[Any, ...]] = {}
    files: dict[int, list[str]] = {}
    paths = [Path(below, name) for below, dirs, names in os.walk(root) for name in dirs + names]
    for path in [root, *paths]:
        status = path.lstat()
        name = os.fspath(path.relative_to(root))
        if not stat.S_ISDIR(status.st_mode):
            files.setdefault(status.st_ino, []).append(name)
        seen[name] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev,
            attributes(path), content(path, status),
        )  # fmt: skip
    groups = sorted(sorted(names) for names in files.values() if len(names) > 1)
    return {**seen, "hard links": (groups,)}


def attributes(path: Path) -> dict[str, bytes]:
    found = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(found)}


def content(path: Path, status: os.stat_result) -> object:
    if stat.S_ISLNK(status.st_mode):
        return path.readlink()
    if stat.S_ISREG(status.st_mode):
        return status.st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    return None
