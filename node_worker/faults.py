"""How whatever goes wrong in a step is told: one Failure with its reason and what to do."""

import errno
from typing import Final

from kybernate.problems import Expected
from kybernate.store.errors import StoreError
from node_worker.archives import ArchiveFailed
from node_worker.containerd import port as runtime
from node_worker.criu_images import ImagesUnreadable
from node_worker.gpu.port import GpuProblem
from schemas import reasons
from schemas.failures import Failure


class Refused(Expected):
    """A step says why it does not go on, in the words that the user gets."""

    def __init__(
        self, reason: str, message: str, *, advice: str = "", retriable: bool = False
    ) -> None:
        super().__init__(message)
        self.failure = Failure(reason=reason, message=message, advice=advice, retriable=retriable)


LONGEST: Final = 8000
"""Characters of a message; a failure has to fit into an event."""
_SEE_SOCKET = "See that containerd runs and that the worker's --containerd names its socket."
_FREE_SPACE = "Free space, delete checkpoints, or move the store to a larger file system."


def failure_of(error: BaseException) -> Failure:  # noqa: PLR0911 - a table, a row per kind
    """What to tell the user about an exception out of a step."""
    match error:
        case Refused():
            return error.failure
        case GpuProblem():
            return _failure(error, error.reason, error.advice, retriable=error.retriable)
        case StoreError() | ArchiveFailed():
            return _failure(error, error.reason, error.advice)
        case ImagesUnreadable():
            return _failure(error, reasons.CHECKPOINT_DAMAGED, "Restore from another checkpoint.")
        case runtime.RuntimeUnavailable():
            return _failure(error, reasons.RUNTIME_UNAVAILABLE, _SEE_SOCKET, retriable=True)
        case runtime.RuntimeProblem():
            return _failure(error, reasons.RUNTIME_FAILED, "See containerd's log.")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return _failure(error, reasons.DISK_FULL, _FREE_SPACE)
    return Failure(
        reason=reasons.INTERNAL,
        message=f"{type(error).__name__}: {words(error)}",
        advice="See the worker's log; this should not happen, please report it.",
    )


def _failure(error: Exception, reason: str, advice: str, *, retriable: bool = False) -> Failure:
    return Failure(reason=reason, message=words(error), advice=advice, retriable=retriable)


def words(error: BaseException) -> str:
    """The error's own words, or what its class says of itself."""
    said = str(error) or (type(error).__doc__ or type(error).__name__).strip()
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} …"
