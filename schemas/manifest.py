"""The manifest: what makes a folder a checkpoint. Written last; without it there is none."""

from schemas.base import Message, Record
from schemas.gpus import GpuFacts, GpuProcess
from schemas.orders import CheckpointId, Target
from schemas.pods import PodRecord
from schemas.volumes import VolumeRecord

MANIFEST_NAME = "manifest.json"
IMAGES_FOLDER = "images"
ROOTFS_FILE = "rootfs.tar"
CHUNK_BYTES = 64 * 1024 * 1024


class FileEntry(Record, frozen=True, kw_only=True):
    """One file of the checkpoint, by its path below the folder."""

    path: str
    size: int
    chunks: tuple[str, ...]
    """BLAKE3 of each CHUNK_BYTES, hexadecimal; the last may be shorter; none for an empty file."""


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


class CheckpointFacts(Record, frozen=True, kw_only=True):
    """A checkpoint in the catalogue and in answers."""

    id: CheckpointId
    node: str
    target: Target
    created: float
    size: int
    memory_bytes: int = 0
    image: str = ""
    place: str = "disk"
    left_running: bool = False
    gpus: tuple[GpuFacts, ...] = ()
    digest: str = ""
    """BLAKE3 of the manifest's bytes; empty for one in memory."""
    pod: PodRecord | None = None
    traceparent: str = ""


class Manifest(Message, frozen=True, kw_only=True):
    """Another version of the format is refused, never guessed at."""

    id: CheckpointId
    action: str
    target: Target
    created: float
    container: ContainerRecord
    host: HostFacts
    files: tuple[FileEntry, ...]
    pids: tuple[int, ...] = ()
    """In the order of the images: the container's own numbering is CRIU's affair."""
    gpus: tuple[GpuFacts, ...] = ()
    gpu_processes: tuple[GpuProcess, ...] = ()
    """By the process's number inside the container's PID namespace."""
    memory_bytes: int = 0
    left_running: bool = False
    timings: tuple[StepTime, ...] = ()
    pod: PodRecord | None = None
    volumes: tuple[VolumeRecord, ...] = ()
    """Of the whole pod."""
    traceparent: str = ""

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files)
