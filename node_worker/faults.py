"""How whatever goes wrong in a step is told: one Failure with its reason and what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kybernate.store.errors import StoreError
from node_worker.containerd import port as runtime
from node_worker.gpu.port import GpuProblem
from schemas import reasons
from schemas.failures import Failure


class Refused(Exception):
    """A step says why it does not go on, in the words that the user gets."""

    def __init__(
        self, reason: str, message: str, *, advice: str = "", retriable: bool = False
    ) -> None:
        super().__init__(message)
        self.failure = Failure(reason=reason, message=message, advice=advice, retriable=retriable)


LONGEST: Final = 8000
"""Characters of a message; a failure has to fit into an event."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_FREE_SPACE = "Free space, delete checkpoints, or move the store to a larger file system."


def failure_of(error: BaseException) -> Failure:
    """What to tell the user about an exception out of a step."""
    match error:
        case Refused():
            return error.failure
        case StoreError() | GpuProblem():
            retriable = error.retriable if isinstance(error, GpuProblem) else False
            return Failure(
                reason=error.reason,
                message=words(error),
                advice=error.advice,
                retriable=retriable,
            )
        case runtime.RuntimeProblem():
            return _runtime_failure(error)
        case OSError() if error.errno in _NO_ROOM:
            return Failure(reason=reasons.DISK_FULL, message=words(error), advice=_FREE_SPACE)
        case _:
            advice = "See the worker's log; this should not happen, please report it."
            return Failure(
                reason=reasons.INTERNAL,
                message=f"{type(error).__name__}: {words(error)}",
                advice=advice,
            )


def words(error: BaseException) -> str:
    """The error's own words, or what its class says of itself."""
    said = str(error) or (type(error).__doc__ or type(error).__name__).strip()
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} …"


@contextmanager
def told_as(reason: str, missing: type[Exception], message: str, advice: str) -> Iterator[None]:
    """Tell one kind of error as a reason of its own."""
    try:
        yield
    except missing as error:
        raise Refused(reason, message, advice=advice) from error


def _runtime_failure(error: runtime.RuntimeProblem) -> Failure:
    if isinstance(error, runtime.RuntimeUnavailable):
        return Failure(
            reason=reasons.RUNTIME_UNAVAILABLE,
            message=words(error),
            advice="See that containerd runs and that the worker's --containerd names its socket.",
            retriable=True,
        )
    return Failure(
        reason=reasons.RUNTIME_FAILED,
        message=words(error),
        advice="See containerd's log and the worker's.",
    )
