"""What can be wrong with a service's surroundings, in words; imported when something is."""

import errno
from collections.abc import Iterator

from kybernate.bus import BusProblem
from kybernate.cli.exits import Failed, Refused, Stop, Unreachable
from kybernate.embedded.containerd import ContainerdFailed
from kybernate.embedded.counting import CannotCount
from kybernate.embedded.demo import DemoFailed
from kybernate.embedded.host import AlreadyUp
from kybernate.embedded.nats_server import NatsServerFailed
from kybernate.embedded.stack import StackMissing
from kybernate.problems import CannotServe
from node_worker.alone import NodeTaken
from node_worker.containerd.port import RuntimeUnavailable
from node_worker.ledger import LedgerUnusable

REFUSED = (AlreadyUp, NodeTaken, CannotCount)
UNREACHABLE = (BusProblem, RuntimeUnavailable)
FAILED = (
    CannotServe,
    ContainerdFailed,
    DemoFailed,
    LedgerUnusable,
    NatsServerFailed,
    StackMissing,
    OSError,
)


_NO_PLACE = frozenset(
    {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}
)


def in_words(error: BaseException) -> Stop | None:
    """What to tell of an error; None for one that is a fault of the program."""
    told = list(_leaves(error))
    for kinds, stop in ((REFUSED, Refused), (UNREACHABLE, Unreachable), (FAILED, Failed)):
        if told and all(isinstance(each, kinds) for each in told):
            return stop(_said(told[0]), _advice(told[0]))
    return None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors themselves, without the groups in which tasks hand them on."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _said(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"cannot use {error.filename}: {error.strerror}"
    return str(error)


def _advice(error: BaseException) -> str:
    if isinstance(error, BusProblem):
        return "see that NATS runs, that --nats names it, and that the credentials are right"
    if isinstance(error, RuntimeUnavailable):
        return "see that containerd runs and that --containerd names its socket"
    if isinstance(error, OSError) and error.errno in _NO_PLACE:
        return "see that the folders of --state and --checkpoints can be written and have room"
    return ""
