"""Puts what a checkpoint holds of a pod's volumes into those of a live pod.

The first container of a pod that comes back brings the contents of all of them; what init
containers have written there makes way. A container that follows, or that comes back again beside
others, finds what these have made of the contents meanwhile. A container that is alone takes its
contents back with it. So there is a mark per pod and container that was staged.

Nothing of the pod may run that could reach into a volume while it is being filled: it could lead
the worker astray by a link.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from kybernate.store import Damage, Damaged
from node_worker import archives, volumes
from node_worker.actors import Means
from node_worker.containerd.port import Container, NotFound, Runtime
from node_worker.faults import Refused
from node_worker.pods.bundles import Wish
from node_worker.processes import free_memory
from node_worker.sizes import in_words
from node_worker.tasks_of import ALIVE
from node_worker.threads import in_thread
from node_worker.volumes import UID_LABEL, Volume
from schemas import reasons
from schemas.manifest import Manifest
from schemas.volumes import VolumeKind, VolumeRecord

PODS: Final = "k8s.io"

Inode = tuple[int, int]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One volume of the live pod, and what comes into it."""

    record: VolumeRecord
    volume: Volume
    kept: frozenset[Inode]
    """Folders that kubelet has mounted for containers which use a part of the volume."""


class Fillings:
    """The volumes of all pods that resume, of one worker."""

    def __init__(self, means: Means) -> None:
        self._runtime: Runtime = means.runtime
        self._marks = means.settings.state / "pods-filled"
        self._locks = WeakValueDictionary[str, asyncio.Lock]()

    def alone(self, wish: Wish) -> asyncio.Lock:
        """One container of a pod after the other."""
        return self._locks.setdefault(wish.sandbox, asyncio.Lock())

    async def targets(self, id: str, wish: Wish, manifest: Manifest) -> tuple[Target, ...]:
        """What container `id` has to bring along; refused while nothing has been touched."""
        if not manifest.volumes or await in_thread(self._others, wish):
            return ()
        container = await self._runtime.container(PODS, id)
        found = await in_thread(_found, container, manifest)
        await self._refuse_used(container, wish, found)
        await in_thread(_refuse_too_little_room, found)
        return found

    async def fill(self, wish: Wish, folder: Path, targets: tuple[Target, ...]) -> None:
        """From the checkpoint's folder, which has been verified."""
        for target in targets:
            await in_thread(_clear, target.volume.path, target.kept)
            await archives.unpack(
                folder / target.record.file,
                target.volume.path,
                target.volume.subject,
                timeout=target.volume.timeout,
            )
        await in_thread(_make_mark, self._marks / f"{wish.sandbox}.{wish.container_name}")

    def marks(self) -> tuple[Path, ...]:
        """Each named after its pod's sandbox, up to the first dot."""
        return tuple(self._marks.iterdir()) if self._marks.is_dir() else ()

    def _others(self, wish: Wish) -> bool:
        """Whether another container of the pod has been brought back."""
        pod, own = f"{wish.sandbox}.", f"{wish.sandbox}.{wish.container_name}"
        return any(mark.name.startswith(pod) and mark.name != own for mark in self.marks())

    async def _refuse_used(
        self, container: Container, wish: Wish, targets: tuple[Target, ...]
    ) -> None:
        pod, uid = volumes.pod_folder(container), container.labels.get(UID_LABEL)
        for other in await self._runtime.containers(PODS):
            if pod is None or other.labels.get(UID_LABEL) != uid:
                continue
            if other.id in {container.id, wish.sandbox}:
                continue
            used = [str(one.record) for one in targets if volumes.uses(other, pod, one.record)]
            if used and await self._runs(other.id):
                raise Refused(
                    reasons.VOLUME_FAILED,
                    f"container {other.id} of the pod runs already and uses its "
                    f"{', '.join(used)}, which is to get its contents of the checkpoint",
                    advice="Let no container run beside those that resume, or give it no volume "
                    "of theirs.",
                )

    async def _runs(self, id: str) -> bool:
        try:
            return (await self._runtime.task(PODS, id)).status in ALIVE
        except NotFound:
            return False


def _found(container: Container, manifest: Manifest) -> tuple[Target, ...]:
    pod = volumes.pod_folder(container)
    if pod is None or not pod.is_dir():
        raise Refused(
            reasons.VOLUME_FAILED,
            "the worker does not find kubelet's folder of the pod, where its volumes are",
            advice="Let the worker see kubelet's folder at the same path (in a pod: "
            "mountPropagation: HostToContainer).",
        )
    listed = {entry.path for entry in manifest.files}
    if missing := [one.file for one in manifest.volumes if one.file not in listed]:
        raise Damaged(Damage.MISSING, missing[0])
    memory = volumes.shared_memory(container)
    return tuple(
        _target(pod, record) if record.kind is VolumeKind.EMPTY_DIR else _in_memory(memory, record)
        for record in manifest.volumes
    )


def _target(pod: Path, record: VolumeRecord) -> Target:
    path = pod / volumes.EMPTY_DIRS / record.name
    if path.is_symlink() or not path.is_dir():
        raise Refused(
            reasons.VOLUME_FAILED,
            f"the pod has no emptyDir {record.name}, of which the checkpoint holds the contents",
            advice="Give the pod the emptyDir volumes that it had, by their names.",
        )
    volume = volumes.look_at(path, pod)
    kept = frozenset(_inode(path.resolve()) for path in volumes.subpaths(pod, record.name))
    return Target(record=record, volume=volume, kept=kept)


def _in_memory(path: Path | None, record: VolumeRecord) -> Target:
    if path is None:
        raise Refused(
            reasons.VOLUME_FAILED,
            f"the pod has no {record} of its own, of which the checkpoint holds the contents",
            advice="Let the pod have it as it had: without hostIPC, and nothing else mounted "
            "there.",
        )
    if not path.is_dir() or not volumes.visible(volume := volumes.look_at_memory(path)):
        raise Refused(
            reasons.VOLUME_FAILED,
            f"the worker cannot see {path}, which the pod has at {record}",
            advice="Let the worker see containerd's state folder at the same path, with mounts "
            "made later (in a pod: mountPropagation: HostToContainer).",
        )
    return Target(record=record, volume=volume, kept=frozenset())


def _refuse_too_little_room(targets: tuple[Target, ...]) -> None:
    for device in {_inode(target.volume.path)[0] for target in targets}:
        here = [target for target in targets if _inode(target.volume.path)[0] == device]
        needed = sum(target.record.bytes - target.volume.bytes for target in here)
        if needed > (room := _room(here[0].volume)):
            names = ", ".join(str(target.record) for target in here)
            raise Refused(
                reasons.NOT_ENOUGH_DISK,
                f"the contents of the pod's {names} need {in_words(needed)} more on this node, "
                f"there is {in_words(room)} free",
                advice="Free space, or memory for a volume in memory; kubelet tries again.",
            )


def _room(volume: Volume) -> int:
    """Where the volume is; memory that a volume takes is counted for who writes there first."""
    found = os.statvfs(volume.path)
    room = found.f_bavail * found.f_frsize
    return min(room, free_memory(os.getpid())) if volume.file_system == volumes.IN_MEMORY else room


def _clear(folder: Path, kept: frozenset[Inode]) -> bool:
    """Remove what is in the folder; whether something had to stay, for a mount of it is used."""
    stays = False
    for path in _inside(folder):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif _clear(path, kept) or _inode(path) in kept:
            stays = True
        else:
            path.rmdir()
    return stays


def _inside(folder: Path) -> Iterator[Path]:
    yield from tuple(folder.iterdir())


def _inode(path: Path) -> Inode:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _make_mark(mark: Path) -> None:
    mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark.touch(mode=0o600)
