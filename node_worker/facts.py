"""The short description of a checkpoint, as catalogue and answers carry it, from what is kept."""

from schemas.base import Record
from schemas.gpus import GpuProcess
from schemas.manifest import CheckpointFacts, Manifest
from schemas.orders import Place


class Sleeper(Record, frozen=True, kw_only=True):
    """A container whose state waits in memory: paused, its GPU memory in the host's."""

    action: str
    facts: CheckpointFacts
    pid: int
    gpu_processes: tuple[GpuProcess, ...] = ()


def facts_of(manifest: Manifest, digest: str) -> CheckpointFacts:
    """What the catalogue keeps of a checkpoint on disk."""
    return CheckpointFacts(
        id=manifest.id,
        node=manifest.host.node,
        target=manifest.target,
        created=manifest.created,
        size=manifest.size,
        memory_bytes=manifest.memory_bytes,
        image=manifest.container.image,
        place=Place.DISK,
        left_running=manifest.left_running,
        gpus=manifest.gpus,
        digest=digest,
        pod=manifest.pod,
        traceparent=manifest.traceparent,
    )
