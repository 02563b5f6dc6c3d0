"""The short description of a checkpoint, as catalogue and answers carry it, from what is kept."""

from schemas.base import Record
from schemas.gpus import GpuProcess
from schemas.manifest import CheckpointFacts, Manifest, PartFacts
from schemas.orders import Place, Target


class Sleeper(Record, frozen=True, kw_only=True):
    """The one container of a checkpoint in memory: paused, its GPU memory in the host's."""

    action: str
    facts: CheckpointFacts
    pid: int
    gpu_processes: tuple[GpuProcess, ...] = ()

    @property
    def target(self) -> Target:
        return self.facts.parts[0].target


def facts_of(manifest: Manifest, digest: str) -> CheckpointFacts:
    """What the catalogue keeps of a checkpoint on disk."""
    return CheckpointFacts(
        id=manifest.id,
        node=manifest.host.node,
        parts=tuple(
            PartFacts(name=part.name, target=part.target, image=part.container.image)
            for part in manifest.parts
        ),
        created=manifest.created,
        size=manifest.size,
        memory_bytes=manifest.memory_bytes,
        place=Place.DISK,
        left_running=manifest.left_running,
        gpus=manifest.gpus,
        digest=digest,
        pod=manifest.pod,
        traceparent=manifest.traceparent,
    )
