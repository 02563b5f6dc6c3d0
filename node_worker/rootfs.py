"""Takes a container's changes to its root filesystem along, and brings them back.

The changes are what the snapshot's writable layer holds. Deleted files are in it as overlay
whiteouts (character devices 0:0), replaced folders carry `trusted.overlay.opaque`; both are
archived and brought back as they are, into the empty writable layer of a new snapshot. Where
nothing was changed, the archive is an empty file and no tar runs.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from node_worker import archives
from node_worker.archives import TIMEOUT, ArchiveFailed, Subject
from node_worker.containerd.port import Mount
from node_worker.threads import in_thread
from schemas import reasons

_UPPER: Final = "upperdir="
_LOWER: Final = "lowerdir="
_OVERLAYS_OWN: Final = "trusted.overlay."
_CHANGES: Final = Subject(
    name="what the container changed in its root filesystem",
    reason=reasons.ROOTFS_FAILED,
    # where a file was copied up from: of no use with other lower folders
    left_out=("trusted.overlay.origin",),
)


def writable_layer(mounts: Sequence[Mount]) -> Path:
    """Where a snapshot's own files lie: overlay's upper folder, or the bound folder itself."""
    for mount in mounts:
        if mount.type == "overlay":
            for option in mount.options:
                if option.startswith(_UPPER):
                    return Path(option.removeprefix(_UPPER))
        if mount.type == "bind" and "rw" in mount.options:
            return Path(mount.source)
    kinds = ", ".join(mount.type for mount in mounts) or "no mounts"
    raise ArchiveFailed(
        f"the container's snapshot ({kinds}) has no writable layer that can be read",
        reason=reasons.ROOTFS_FAILED,
        advice="Use containerd's overlayfs or native snapshotter.",
    )


async def capture(mounts: Sequence[Mount], archive: Path, *, timeout: float = TIMEOUT) -> int:
    """Archive the writable layer; the size of the archive. Nobody may write to it meanwhile."""
    layer = writable_layer(mounts)
    if await in_thread(_is_unchanged, layer, mounts):
        await in_thread(_note_unchanged, layer, archive)
        return 0
    return await archives.pack(layer, archive, _CHANGES, timeout=timeout)


async def apply(mounts: Sequence[Mount], archive: Path, *, timeout: float = TIMEOUT) -> None:
    """Make the writable layer of an unused snapshot what the archive says.

    It is empty, or nearly: looking is quicker than a thread, for which a restore would wait.
    """
    layer = writable_layer(mounts)
    if not _made_unchanged(layer, archive):
        await archives.unpack(archive, layer, _CHANGES, timeout=timeout)


def _is_unchanged(layer: Path, mounts: Sequence[Mount]) -> bool:
    """Whether nothing lies in it, and it is itself like the folder that it lies over."""
    options = (option for mount in mounts for option in mount.options)
    lower = next((one.removeprefix(_LOWER) for one in options if one.startswith(_LOWER)), None)
    if lower is None or any(layer.iterdir()):
        return False
    return _attributes(layer) == _attributes(Path(lower.partition(":")[0]))


def _note_unchanged(layer: Path, archive: Path) -> None:
    """By an empty file that has the times of the root folder."""
    archive.touch(0o600)
    times = layer.stat()
    os.utime(archive, ns=(times.st_atime_ns, times.st_mtime_ns))


def _made_unchanged(layer: Path, archive: Path) -> bool:
    """Empty it; whether that is all that the archive says."""
    _empty(layer)
    kept = archive.stat()
    if not kept.st_size:
        os.utime(layer, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    return not kept.st_size


def _attributes(folder: Path) -> tuple[int, int, int, dict[str, bytes]]:
    status = folder.stat()
    names = (name for name in os.listxattr(folder) if not name.startswith(_OVERLAYS_OWN))
    extended = {name: os.getxattr(folder, name) for name in names}
    return status.st_mode, status.st_uid, status.st_gid, extended


def _empty(folder: Path) -> None:
    with os.scandir(folder) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                shutil.rmtree(item.path)
            else:
                Path(item.path).unlink()
