"""The manifest: what makes a folder a checkpoint. Written last; without it there is none."""

from schemas.base import Message, Record
from schemas.gpus import GpuFacts, GpuProcess
from schemas.orders import CheckpointId, Identifier, Target
from schemas.pods import PodRecord
from schemas.volumes import VolumeRecord

MANIFEST_VERSION = 2
MANIFEST_NAME = "manifest.json"
PARTS_FOLDER = "containers"
IMAGES_FOLDER = "images"
ROOTFS_FILE = "rootfs.tar"
CHUNK_BYTES = 64 * 1024 * 1024


def part_folder(part: str) -> str:
    """Where a container's own files lie below the checkpoint's folder."""
    return f"{PARTS_FOLDER}/{part}"


class FileEntry(Record, frozen=True, kw_only=True):
    """One file of the checkpoint, by its path below the folder."""

    path: str
    size: int
    chunks: tuple[str, ...]
    """BLAKE3 of each CHUNK_BYTES, hexadecimal; the last may be shorter; none for an empty file."""
    checks: tuple[str, ...] = ()
    """XXH3-128 of the same, against decay of the disk; none at all in early manifests."""


class HostFacts(Record, frozen=True, kw_only=True):
    """What a restore depends on."""

    node: str
    architecture: str
    kernel: str
    cpu_model: str
    cpu_flags: tuple[str, ...] = ()
    containerd: str = ""
    criu: str = ""


class Streams(Record, frozen=True, kw_only=True):
    """Where the container's output goes, as containerd names it; empty means nowhere."""

    stdout: str = ""
    stderr: str = ""


class ContainerRecord(Record, frozen=True, kw_only=True):
    """containerd's record of the container, as a restore under another name needs it."""

    image: str
    labels: dict[str, str]
    snapshotter: str
    parent_snapshot: str
    """The committed snapshot below the container's own: the unpacked image."""
    runtime: str
    runtime_options_type: str
    runtime_options: bytes
    spec: bytes
    streams: Streams = Streams()


class StepTime(Record, frozen=True, kw_only=True):
    step: str
    seconds: float


class PartRecord(Record, frozen=True, kw_only=True):
    """One container of the checkpoint."""

    name: Identifier
    target: Target
    container: ContainerRecord
    pids: tuple[int, ...] = ()
    """In the order of the images: the container's own numbering is CRIU's affair."""
    gpu_processes: tuple[GpuProcess, ...] = ()
    """By the process's number inside the container's PID namespace."""
    memory_bytes: int = 0


class PartFacts(Record, frozen=True, kw_only=True):
    """One container of a checkpoint, in the catalogue and in answers."""

    name: Identifier
    target: Target
    image: str = ""


class CheckpointFacts(Record, frozen=True, kw_only=True):
    """A checkpoint in the catalogue and in answers."""

    id: CheckpointId
    node: str
    parts: tuple[PartFacts, ...]
    created: float
    size: int
    memory_bytes: int = 0
    place: str = "disk"
    left_running: bool = False
    gpus: tuple[GpuFacts, ...] = ()
    digest: str = ""
    """BLAKE3 of the manifest's bytes; empty for one in memory."""
    pod: PodRecord | None = None
    traceparent: str = ""


class Manifest(Message, frozen=True, kw_only=True, tag=MANIFEST_VERSION):
    """Another version of the format is refused, never guessed at."""

    id: CheckpointId
    action: str
    created: float
    parts: tuple[PartRecord, ...]
    host: HostFacts
    files: tuple[FileEntry, ...]
    gpus: tuple[GpuFacts, ...] = ()
    left_running: bool = False
    timings: tuple[StepTime, ...] = ()
    pod: PodRecord | None = None
    volumes: tuple[VolumeRecord, ...] = ()
    """Of the whole pod."""
    traceparent: str = ""

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files)

    @property
    def memory_bytes(self) -> int:
        return sum(part.memory_bytes for part in self.parts)

    @property
    def gpu_processes(self) -> tuple[GpuProcess, ...]:
        """Of all containers; a number is unique in its own only."""
        return tuple(process for part in self.parts for process in part.gpu_processes)

    def part(self, name: str) -> PartRecord | None:
        return next((part for part in self.parts if part.name == name), None)
