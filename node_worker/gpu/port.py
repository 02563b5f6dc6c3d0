"""What the node worker needs from GPUs: the protocols, their data and their errors.

`client.py` speaks to a resident helper process that calls the driver; the tests' twin sits behind
the same helper, and one contract suite holds both to it. Rules that the callers rely on:

- A process goes RUNNING → `lock` → LOCKED → `checkpoint` → CHECKPOINTED → `restore` → LOCKED →
  `unlock` → RUNNING. A call in another state is a `GpuFailed` that changes nothing.
- Calls for one process run one after another, also when an earlier caller was cancelled.
- A call that does not come back in its time costs the helper its life and its caller a `GpuHung`.
  Calls for other processes that were under way are taken up again by the next helper.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import ClassVar, Protocol

from kybernate.problems import Expected
from schemas import reasons
from schemas.gpus import GpuFacts, GpuProcess

CALL_TIMEOUT = 30.0
"""Seconds for the calls that move no data; the first one of a helper also loads the driver."""
TRANSFER_TIMEOUT = 600.0
"""Seconds for the calls that move GPU memory, where the caller names none."""


class GpuState(StrEnum):
    """The driver's word on a process that has CUDA."""

    RUNNING = "running"
    LOCKED = "locked"
    """Its CUDA calls wait and nothing runs on the GPU for it."""
    CHECKPOINTED = "checkpointed"
    """Its GPU memory is in host memory, and no GPU holds anything of it."""
    CHECKPOINTING = "checkpointing"
    RESTORING = "restoring"
    FAILED = "failed"
    """An error left it unusable; nothing brings it back."""


class GpuProblem(Expected):
    """Whatever could not be done with GPUs."""

    reason: ClassVar[str] = reasons.GPU_FAILED
    advice: ClassVar[str] = "See the kernel's log for messages of the NVIDIA driver (NVRM, Xid)."
    retriable: ClassVar[bool] = False


class GpuBusy(GpuProblem):
    """The lock was not granted in time: work already on the GPU went on undisturbed."""

    reason = reasons.GPU_BUSY
    advice = "Give more time (--timeout), or try again when its long kernel is done."
    retriable = True


class GpuHung(GpuProblem):
    """A call to the driver did not come back; the helper that made it was killed."""

    reason = reasons.GPU_HUNG


class GpuFailed(GpuProblem):
    """The driver answered an error; `code` is its name."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class NotCuda(GpuProblem):
    """The process does not use CUDA."""


class ProcessGone(GpuProblem):
    """The process has ended, or this program may not see it."""

    advice = "The worker needs root in the host's PID namespace; see why the process ended."


class GpuUnavailable(GpuProblem):
    """The driver is not there, or the helper process cannot be kept alive."""

    reason = reasons.GPU_UNAVAILABLE
    advice = "See the worker's log for what the helper wrote before it ended."
    retriable = True


class Gpu(Protocol):
    """The GPUs of this node and the processes that use them."""

    async def facts(self) -> tuple[GpuFacts, ...]:
        """The GPUs; none where there is no driver."""

    async def absence(self) -> str:
        """Why there are no GPUs to be seen; empty when there are."""

    async def processes(self, pids: Sequence[int]) -> tuple[GpuProcess, ...]:
        """Those of the processes that have CUDA, in any state."""

    async def state(self, pid: int) -> GpuState:
        """The process itself answers the driver: one that is frozen (paused) lets it hang."""

    async def lock(self, pid: int, timeout: float) -> None:
        """Wait for its work on the GPU and hold back new work; GpuBusy after `timeout` seconds."""

    async def checkpoint(self, pid: int, *, timeout: float = TRANSFER_TIMEOUT) -> None: ...

    async def restore(
        self,
        pid: int,
        pairs: Mapping[str, str] | None = None,
        *,
        timeout: float = TRANSFER_TIMEOUT,
    ) -> None:
        """Bring its GPU memory back; `pairs` says which GPU (UUID) becomes which."""

    async def unlock(self, pid: int) -> None: ...


class DriverError(Exception):
    """An error code of the driver, by its name (`CUDA_ERROR_NOT_READY`)."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Driver(Protocol):
    """The driver as the helper process calls it, from threads. Errors are `DriverError`s."""

    def absence(self) -> str: ...

    def facts(self) -> tuple[GpuFacts, ...]: ...

    def processes(self, pids: Sequence[int]) -> tuple[GpuProcess, ...]: ...

    def state(self, pid: int) -> GpuState: ...

    def lock(self, pid: int, timeout: float) -> None: ...

    def checkpoint(self, pid: int) -> None: ...

    def restore(self, pid: int, pairs: Mapping[str, str] | None) -> None: ...

    def unlock(self, pid: int) -> None: ...
