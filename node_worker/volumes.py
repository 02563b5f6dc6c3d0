"""What a pod's containers share of files: where it lies, and its way into a checkpoint.

Kubelet keeps a pod's files below `pods/<uid>`; the container's mounts say where that is, for each
container has some of them mounted. The UID is containerd's word, given by kubelet, and nothing
that whoever makes a pod could have chosen. All emptyDirs of the pod are taken, whichever container
uses them: the folders there are the pod's own list. Beside them there is the memory at /dev/shm
that containerd makes for each pod.
"""

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from kybernate import tasks
from node_worker import archives
from node_worker.archives import Subject
from node_worker.containerd.port import Container
from schemas import reasons
from schemas.failures import Failure
from schemas.volumes import SHARED_MEMORY, VolumeKind, VolumeName, VolumeRecord

SANDBOX: Final = "io.kubernetes.cri.sandbox-id"
UID_LABEL: Final = "io.kubernetes.pod.uid"
EMPTY_DIRS: Final = "volumes/kubernetes.io~empty-dir"
SUBPATHS: Final = "volume-subpaths"
HUGE_PAGES: Final = "hugetlbfs"
IN_MEMORY: Final = "tmpfs"
MOUNTS: Final = Path("/proc/self/mountinfo")
PROC: Final = Path("/proc")
SECONDS_PER_GIB: Final = 60.0

_UID: Final = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_BLOCK: Final = 512
_POINT: Final = 4
"""The column of mountinfo that names the mount point."""


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """One of them as it lies on the node."""

    name: str
    kind: VolumeKind = VolumeKind.EMPTY_DIR
    path: Path
    file_system: str = ""
    """Of the mount at the path; empty where it is an ordinary folder."""
    bytes: int = 0
    mounted_files: tuple[str, ...] = ()
    """Files of it that a container has mounted by subPath."""

    @property
    def record(self) -> VolumeRecord:
        return VolumeRecord(name=self.name, kind=self.kind, bytes=self.bytes)

    @property
    def subject(self) -> Subject:
        return Subject(
            name=f"the pod's {self.record}",
            reason=reasons.VOLUME_FAILED,
            left_out=("security.selinux",),  # each pod has labels of its own
        )

    @property
    def timeout(self) -> float:
        return archives.TIMEOUT + self.bytes / (1 << 30) * SECONDS_PER_GIB


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker sees of a pod's volumes."""

    volumes: tuple[Volume, ...] = ()
    hidden: str = ""
    """A volume of the container that lies where the worker cannot look."""

    @property
    def bytes(self) -> int:
        return sum(volume.bytes for volume in self.volumes)


def look(containers: Sequence[tuple[Container, int]]) -> Seen:
    """Of a pod's containers, each with its first process. Blocks, as long as it takes to look at
    every file.
    """
    placed = [(one, pod) for one, _ in containers if (pod := pod_folder(one)) is not None]
    hidden = [name for one, pod in placed if not pod.is_dir() for name in _mounted(one, pod)]
    if not placed or not placed[0][1].is_dir():
        return Seen(hidden=next(iter(hidden), ""))
    pod = placed[0][1]
    empty_dirs = tuple(look_at(path, pod) for path in _folders(pod / EMPTY_DIRS))
    memory = next((volume for one, _ in containers if (volume := _visible_memory(one))), None)
    if memory is not None:
        return Seen(volumes=(*empty_dirs, memory) if any(memory.path.iterdir()) else empty_dirs)
    return Seen(volumes=empty_dirs, hidden=SHARED_MEMORY if any(map(_has_more, containers)) else "")


def obstacles(seen: Seen) -> Iterator[Failure]:
    """What stands against taking them along. Pure."""
    if seen.hidden:
        yield _obstacle(
            f"the worker cannot look into the pod's {seen.hidden}",
            "Let the worker see kubelet's and containerd's folders at the same paths, with mounts "
            "made later (in a pod: mountPropagation: HostToContainer).",
        )
    for volume in seen.volumes:
        if not _is_name(volume.name):
            yield _obstacle(f"{volume.path} is not named as a volume", "See who made it.")
        if volume.file_system == HUGE_PAGES:
            yield _obstacle(
                f"the emptyDir {volume.name} is of huge pages, whose contents cannot come along",
                "Use the medium Memory, or ordinary memory for huge pages.",
            )
        for file in volume.mounted_files:
            yield _obstacle(
                f"a container mounts a single file of the emptyDir {volume.name} (subPath, {file})",
                "Mount a folder of it: kubelet would make a folder in the file's place.",
            )


def pod_folder(container: Container) -> Path | None:
    """Kubelet's folder of the container's pod; None for a container that kubelet did not make."""
    uid = container.labels.get(UID_LABEL, "")
    if not _UID.match(uid):
        return None
    for source in sources(container.oci):
        root, found, _ = source.partition(f"/pods/{uid}/")
        if found and root.startswith("/") and ".." not in Path(root).parts:
            return Path(root) / "pods" / uid
    return None


def shared_memory(container: Container) -> Path | None:
    """What containerd has made for the container's pod and mounted at its /dev/shm; None for the
    node's own, or another volume.
    """
    sandbox = container.annotations.get(SANDBOX, "")
    for mount in container.oci.get("mounts") or ():
        source = Path(str(mount.get("source", "")))
        at_its_place = mount.get("destination") == SHARED_MEMORY
        if sandbox and at_its_place and source.parts[-2:] == (sandbox, "shm"):
            return source
    return None


def sources(spec: dict[str, Any]) -> tuple[str, ...]:
    """Where an OCI spec's mounts come from."""
    return tuple(str(mount.get("source", "")) for mount in spec.get("mounts") or ())


def uses(container: Container, pod: Path, volume: VolumeRecord) -> bool:
    """Whether the container has that volume of its pod mounted, or a part of it."""
    if volume.kind is VolumeKind.SHARED_MEMORY:
        return shared_memory(container) is not None
    whole, parts = pod / EMPTY_DIRS / volume.name, pod / SUBPATHS / volume.name
    return any(
        Path(source).is_relative_to(folder)
        for source in sources(container.oci)
        for folder in (whole, parts)
    )


def subpaths(pod: Path, name: str) -> Iterator[Path]:
    """What kubelet has mounted for containers that use parts of a volume."""
    return (pod / SUBPATHS / name).glob("*/*")


def used_bytes(folder: Path) -> int:
    """Space that the files below take, each file counted once."""
    device, found = folder.stat().st_dev, dict[int, int]()
    for _, _, names, descriptor in os.fwalk(folder):
        for name in names:
            status = _status(name, descriptor)
            if status is not None and status.st_dev == device:
                found[status.st_ino] = status.st_blocks * _BLOCK
    return sum(found.values())


class Capture:
    """Archives volumes beside a dump."""

    def __init__(self) -> None:
        self._archiving: list[asyncio.Task[int]] = []

    def start(self, volumes: tuple[Volume, ...], folder: Path) -> None:
        """Into a checkpoint's folder; nobody may write to the volumes until it has ended."""
        for volume in volumes:
            (folder / volume.record.file).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._archiving = [
            asyncio.create_task(_packed(volume, folder / volume.record.file)) for volume in volumes
        ]

    async def finish(self) -> None:
        if self._archiving:
            await asyncio.gather(*self._archiving)

    async def stop(self) -> None:
        """End it; the failure that counts is another one's."""
        for work in self._archiving:
            await tasks.end(work)
            work.cancelled() or work.exception()


async def _packed(volume: Volume, archive: Path) -> int:
    return await archives.pack(volume.path, archive, volume.subject, timeout=volume.timeout)


def look_at(path: Path, pod: Path) -> Volume:
    """One of the pod's emptyDirs; blocks like `look`."""
    return Volume(
        name=path.name,
        path=path,
        file_system=_file_system(path),
        bytes=used_bytes(path),
        mounted_files=tuple(
            f"container {place.parent.name}"
            for place in subpaths(pod, path.name)
            if not place.is_dir()
        ),
    )


def look_at_memory(path: Path) -> Volume:
    """What is at /dev/shm of a pod."""
    return Volume(
        name="dev-shm",
        kind=VolumeKind.SHARED_MEMORY,
        path=path,
        file_system=_file_system(path),
        bytes=used_bytes(path),
    )


def visible(memory: Volume) -> bool:
    """Whether it is what containerd has mounted, and not the empty folder below the mount."""
    return memory.file_system == IN_MEMORY


def _visible_memory(container: Container) -> Volume | None:
    path = shared_memory(container)
    found = look_at_memory(path) if path and path.is_dir() else None
    return found if found and visible(found) else None


def _has_more(one: tuple[Container, int]) -> bool:
    """Whether the process has files in its pod's shared memory. Never read: where the process may
    mount, it may have put a link there that leads elsewhere.
    """
    container, pid = one
    memory = PROC / str(pid) / "root" / SHARED_MEMORY.lstrip("/")
    return shared_memory(container) is not None and memory.is_dir() and any(memory.iterdir())


def _folders(parent: Path) -> list[Path]:
    """Folders alone, not links to some; none where kubelet made no such volume."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.is_symlink())


def _mounted(container: Container, pod: Path) -> Iterator[str]:
    """The emptyDirs that the container has mounted, by its own mounts."""
    for source in map(Path, sources(container.oci)):
        for parent in (pod / EMPTY_DIRS, pod / SUBPATHS):
            if source.is_relative_to(parent) and source != parent:
                yield f"emptyDir {source.relative_to(parent).parts[0]}"


def _file_system(path: Path) -> str:
    """Of the topmost mount at that path."""
    found = ""
    for line in MOUNTS.read_text().splitlines():
        fields = line.split()
        if Path(fields[_POINT].encode().decode("unicode_escape")) == path:
            found = fields[fields.index("-") + 1]
    return found


def _status(name: str, descriptor: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:  # it went while somebody looked
        return None


def _is_name(text: str) -> bool:
    try:
        msgspec.convert(text, type=VolumeName)
    except msgspec.ValidationError:
        return False
    return True


def _obstacle(message: str, advice: str) -> Failure:
    return Failure(reason=reasons.CANNOT_BE_CHECKPOINTED, message=message, advice=advice)
