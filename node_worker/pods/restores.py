"""Brings a container back in a pod that kubelet made: what the worker does at each call of runc.

restore (at create): the checkpoint is found, held against pod and host, verified to the last
byte; its changed files go into the container's own root filesystem, CRIU's options into the
bundle. running (at start): GPU memory goes back, then the staged images go. gone: whatever is left
goes. Mounts, devices, cgroup and network are the live pod's; nothing comes from the checkpoint's
spec. What failed is tried again by kubelet, with a new container.

What has to be known later lies in a note per container, because the worker may be another one by
then. A restarted container starts from its image unless the pod wants otherwise: a mark per pod
and container's name says that it had come back.
"""

import asyncio
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kybernate.store import verify
from node_worker import criu_images, criu_process, folders, host, rootfs
from node_worker.actors import Means
from node_worker.containerd.port import Container, Mount, NotFound, RestorePaths
from node_worker.faults import Refused
from node_worker.gpu import group, obstacles, pairing
from node_worker.holding import refuse
from node_worker.pods import bundles, sources
from node_worker.pods.bundles import Wish
from node_worker.pods.requests import GoneTold, RestoreAsked, RunningAsked
from node_worker.pods.volumes import Fillings
from node_worker.surroundings import numbered_outside
from node_worker.threads import in_thread
from schemas import reasons
from schemas.base import Record, decoder
from schemas.gpus import GpuProcess
from schemas.manifest import IMAGES_FOLDER, ROOTFS_FILE, Manifest, PartRecord, part_folder

NOTE: Final = "note.json"
WORK: Final = "work"
INIT_PID: Final = "init.pid"
PROC: Final = Path("/proc")
PODS: Final = "k8s.io"
"""The containerd namespace of all pods."""


class Note(Record, frozen=True, kw_only=True):
    """What a container that is being restored will need."""

    bundle: str
    sandbox: str
    container_name: str
    gpu_processes: tuple[GpuProcess, ...] = ()
    pairs: dict[str, str] = {}


class Source(NamedTuple):
    """The container of the checkpoint that resumes."""

    folder: Path
    manifest: Manifest
    part: PartRecord

    @property
    def files(self) -> Path:
        """Where those of the container itself are."""
        return self.folder / part_folder(self.part.name)

    def verify(self, more: Collection[str]) -> None:
        """Its own files, and what else is going to be read."""
        own = f"{part_folder(self.part.name)}/"
        verify(self.folder, self.manifest, lambda path: path.startswith(own) or path in more)


class Restores:
    """Restores into pods, of one worker."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._folder = means.settings.state / "pods"
        self._marks = means.settings.state / "pods-resumed"
        self._volumes = Fillings(means)

    async def restore(self, request: RestoreAsked) -> RestorePaths | None:
        """Stage the checkpoint for the bundle; None: the container starts from its image."""
        wish = await in_thread(bundles.read_wish, request.bundle)
        if wish.restarts_from_image and self._mark(wish.sandbox, wish.container_name).exists():
            return None
        folder, manifest = await in_thread(sources.find, self._means.store, wish)
        if (part := sources.part_of(manifest, wish)) is None:
            return None
        try:
            async with self._volumes.alone(wish):
                return await self._staged(request, wish, Source(folder, manifest, part))
        except BaseException:
            await in_thread(self._drop, request.container)
            raise

    async def running(self, request: RunningAsked) -> None:
        """Return when the container runs, its GPU memory included."""
        note = await in_thread(self._note, request.container)
        if note.gpu_processes:
            await self._bring_gpu_back(note)
        mark = self._mark(note.sandbox, note.container_name)
        await in_thread(_make_mark, mark)
        await in_thread(self._drop, request.container)

    async def gone(self, request: GoneTold) -> None:
        """Drop what was staged; also for a container that is not known (any more)."""
        await criu_process.end_in(self._work(request.container))
        await in_thread(self._drop, request.container)

    async def clear_up(self) -> None:
        """Drop what belongs to containers and pods that are no more: nobody has told of them."""
        for folder in await in_thread(_paths_in, self._folder):
            if not await self._is_there(folder.name):
                await self.gone(GoneTold(container=folder.name))
        for mark in (*await in_thread(_paths_in, self._marks), *self._volumes.marks()):
            if not await self._is_there(mark.name.partition(".")[0]):
                mark.unlink(missing_ok=True)

    async def _staged(self, request: RestoreAsked, wish: Wish, source: Source) -> RestorePaths:
        host.check_fits(source.manifest.host, self._means.host)
        pairs = await self._pairs(source)
        mounts = await self._root(request.container, source.part)
        targets = await self._volumes.targets(request.container, wish, source.manifest)
        await in_thread(source.verify, [target.record.file for target in targets])
        note = Note(
            bundle=str(request.bundle),
            sandbox=wish.sandbox,
            container_name=wish.container_name,
            gpu_processes=source.part.gpu_processes,
            pairs=pairs,
        )
        images = await in_thread(self._prepare, request.container, source.files, note)
        await rootfs.apply(mounts, source.files / ROOTFS_FILE)
        await self._volumes.fill(wish, source.folder, targets)
        await in_thread(bundles.give_options, request.bundle)
        return RestorePaths(image_path=str(images), work_path=str(self._work(request.container)))

    async def _pairs(self, source: Source) -> dict[str, str]:
        """The same for every container of the pod."""
        manifest = source.manifest
        if not source.part.gpu_processes:
            return {}
        now = await self._means.gpu.facts()
        pairs = pairing.pair(manifest.gpus, now, processes=manifest.gpu_processes)
        refuse(obstacles.restore_obstacles(manifest.gpus, now, pairs))
        return pairs

    async def _root(self, id: str, part: PartRecord) -> tuple[Mount, ...]:
        """The mounts of the container's own root filesystem, if it is of the same image."""
        runtime = self._means.runtime
        container: Container = await runtime.container(PODS, id)
        place = (PODS, container.snapshotter, container.snapshot_key)
        snapshot, mounts = await asyncio.gather(runtime.snapshot(*place), runtime.mounts(*place))
        was = part.container
        if snapshot.parent != was.parent_snapshot:
            raise Refused(
                reasons.IMAGE_MISSING,
                f"the image of the pod ({container.image}) is another one than that of the "
                f"checkpoint ({was.image})",
                advice="Give the container the image that it had, by its digest.",
            )
        return mounts

    def _prepare(self, id: str, folder: Path, note: Note) -> Path:
        """The images; a changed copy of them where CRIU could not restore them well."""
        self._drop(id)
        self._work(id).mkdir(mode=0o700, parents=True)
        (self._folder / id / NOTE).write_bytes(msgspec.json.encode(note))
        images = folder / IMAGES_FOLDER
        if not criu_images.needs_changes(images):
            return images
        copy = self._means.store.scratch(id) / IMAGES_FOLDER
        criu_images.copy_changed(images, copy)
        return copy

    def _note(self, id: str) -> Note:
        try:
            raw = (self._folder / id / NOTE).read_bytes()
        except FileNotFoundError as error:
            raise Refused(
                reasons.RESTORE_FAILED,
                f"the worker of this node knows nothing of a restore of container {id}",
                advice="See that one worker alone has this state folder; kubelet tries again.",
            ) from error
        return decoder(Note).decode(raw)

    async def _bring_gpu_back(self, note: Note) -> None:
        pids = await in_thread(_family, int((Path(note.bundle) / INIT_PID).read_text()))
        seen = await in_thread(self._means.look, pids)
        found = numbered_outside(note.gpu_processes, seen.processes)
        if len(found) < len(note.gpu_processes):
            raise Refused(
                reasons.RESTORE_FAILED,
                f"of {len(note.gpu_processes)} processes with GPU memory only {len(found)} are "
                "there again",
                advice="See the container's own output for why a process has ended.",
            )
        held = [process.pid for process in found]
        await group.restore_all(self._means.gpu, held, note.pairs or None)
        await group.unlock_all(self._means.gpu, held)

    def _work(self, id: str) -> Path:
        """Where CRIU writes its log."""
        return self._folder / id / WORK

    def _drop(self, id: str) -> None:
        self._means.store.discard_scratch(id)
        folders.remove(self._folder / id)

    def _mark(self, sandbox: str, container_name: str) -> Path:
        return self._marks / f"{sandbox}.{container_name}"

    async def _is_there(self, id: str) -> bool:
        try:
            await self._means.runtime.container(PODS, id)
        except NotFound:
            return False
        return True


def _make_mark(mark: Path) -> None:
    mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark.touch(mode=0o600)


def _paths_in(folder: Path) -> tuple[Path, ...]:
    return tuple(folder.iterdir()) if folder.is_dir() else ()


def _family(pid: int) -> tuple[int, ...]:
    """The process and all that come from it."""
    return (pid, *(each for child in _children(pid) for each in _family(child)))


def _children(pid: int) -> Iterator[int]:
    for file in (PROC / str(pid)).glob("task/*/children"):
        try:
            yield from map(int, file.read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            continue
