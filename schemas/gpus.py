"""GPUs of a node and the processes that use them."""

from schemas.base import Record


class GpuFacts(Record, frozen=True, kw_only=True):
    """One GPU as its driver describes it."""

    index: int
    uuid: str
    model: str
    memory_bytes: int
    driver: str
    mig: bool = False


class GpuProcess(Record, frozen=True, kw_only=True):
    """One process that has CUDA, with what it holds on each GPU where that is known."""

    pid: int
    usage: dict[str, int] = {}
    """Bytes by the GPU's UUID."""
