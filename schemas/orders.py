"""What a node is told to do: the content of a job."""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta

from schemas.base import Record
from schemas.pods import PodRecord

_IDENTIFIER = r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$(?!\n)"
_ID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$(?!\n)"
PATTERNS_IN_WORDS: Final = {
    _IDENTIFIER: "a name of letters, digits and `_.-` that begins and ends with a letter or digit",
    _ID: "an id as `kybernate get checkpoints` shows it",
}

Identifier = Annotated[str, Meta(pattern=_IDENTIFIER, max_length=76)]
"""What containerd takes as the name of a container or of a namespace."""

CheckpointId = Annotated[str, Meta(pattern=_ID)]


class Place(StrEnum):
    """Where the state of a checkpointed container waits."""

    DISK = "disk"
    MEMORY = "memory"
    """GPU memory in the host's, the processes frozen: the GPU is free, nothing is written."""


class OutsideTcp(StrEnum):
    """What becomes of TCP connections to peers outside the container."""

    CLOSE = "close"
    REFUSE = "refuse"


class Target(Record, frozen=True, kw_only=True):
    """One container of one node's containerd."""

    namespace: Identifier
    container: Identifier


class Part(Record, frozen=True, kw_only=True):
    """One container of a checkpoint."""

    name: Identifier
    """The one that it has in its pod, or its own; no other part of the checkpoint has it."""
    target: Target


class CheckpointOrder(Record, frozen=True, kw_only=True, tag_field="verb", tag="checkpoint"):
    """Checkpoint running containers as one; stop them unless they are left running."""

    parts: Annotated[tuple[Part, ...], Meta(min_length=1)]
    """In memory only one container can wait."""
    checkpoint: CheckpointId
    place: Place = Place.DISK
    leave_running: bool = False
    outside_tcp: OutsideTcp = OutsideTcp.CLOSE
    independent_gpu_processes: bool = False
    """Several CUDA processes share no GPU memory with each other (CUDA IPC)."""
    pod: PodRecord | None = None
    """The pod of Kubernetes that the containers belong to."""

    @property
    def ends_pod(self) -> bool:
        """The pod is deleted once its checkpoint is durable, and its containers end with it."""
        return self.pod is not None and not self.leave_running

    def __post_init__(self) -> None:
        if len({part.name for part in self.parts}) < len(self.parts):
            raise ValueError("two parts of the checkpoint have the same name")
        if len({part.target for part in self.parts}) < len(self.parts):
            raise ValueError("two parts of the checkpoint are the same container")
        if self.place is Place.MEMORY and len(self.parts) > 1:
            raise ValueError("only one container can be checkpointed into memory")


class RestoreOrder(Record, frozen=True, kw_only=True, tag_field="verb", tag="restore"):
    """Resume one container of a checkpoint, under its own or another name."""

    checkpoint: CheckpointId
    part: Identifier
    target: Target
    place: Place = Place.DISK
    digest: str = ""
    """Of the manifest, as the catalogue knows it; another manifest is not restored."""
    gpu_map: dict[str, str] = {}
    """UUID at the checkpoint → UUID now; empty: the node pairs them itself."""


class DeleteOrder(Record, frozen=True, kw_only=True, tag_field="verb", tag="delete"):
    """Delete the files of a checkpoint."""

    checkpoint: CheckpointId


Order = CheckpointOrder | RestoreOrder | DeleteOrder
VERBS = {CheckpointOrder: "checkpoint", RestoreOrder: "restore", DeleteOrder: "delete"}


def verb(order: Order) -> str:
    return VERBS[type(order)]


def only_part(target: Target) -> tuple[Part, ...]:
    """The parts of a checkpoint of this container alone."""
    return (Part(name=target.container, target=target),)
