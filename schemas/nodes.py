"""What a node tells about itself with each heartbeat."""

from schemas.base import Message, Record
from schemas.gpus import GpuFacts
from schemas.manifest import HostFacts
from schemas.orders import Target

HEARTBEAT_SECONDS = 5.0
SILENT_AFTER_SECONDS = 20.0


class NodeWarning(Record, frozen=True, kw_only=True):
    """Something about the node that costs speed or a feature, and what to do."""

    reason: str
    message: str


class Inventory(Message, frozen=True, kw_only=True):
    """A node as its worker sees it; `at` is the heartbeat."""

    node: str
    instance: str
    at: float
    started: float
    worker_version: str
    ready: bool
    """The worker takes jobs: containerd answers and nothing is left to recover."""
    problem: str = ""
    """Why it does not."""
    host: HostFacts
    containers: tuple[Target, ...] = ()
    gpus: tuple[GpuFacts, ...] = ()
    free_disk_bytes: int = 0
    free_memory_bytes: int = 0
    running: tuple[str, ...] = ()
    """Actions at work."""
    warnings: tuple[NodeWarning, ...] = ()


class DeletedNode(Record, frozen=True, kw_only=True):
    """A node that is forgotten until its worker reports again."""

    node: str
    missing: tuple[str, ...] = ()
    """Checkpoints that lie on it, as far as anybody knows."""
