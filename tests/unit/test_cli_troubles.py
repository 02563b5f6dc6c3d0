"""What is wrong with a service's surroundings reaches its user in words, never as a trace."""

import errno

import pytest

from kybernate.bus import BusUnavailable
from kybernate.cli.exits import Failed, Refused, Stop, Unreachable
from kybernate.cli.troubles import in_words
from kybernate.problems import CannotServe
from node_worker.alone import NodeTaken


@pytest.mark.parametrize(
    ("error", "stop"),
    [
        (CannotServe("the address is in use"), Failed),
        (NodeTaken("there is another worker"), Refused),
        (BusUnavailable("no servers"), Unreachable),
    ],
)
def test_each_trouble_ends_in_its_words_and_exit_code(error: Exception, stop: type[Stop]) -> None:
    told = in_words(ExceptionGroup("tasks", [error]))

    assert isinstance(told, stop)
    assert str(error) in str(told)


def test_a_folder_that_cannot_be_written_is_told_with_what_to_do() -> None:
    told = in_words(OSError(errno.EROFS, "Read-only file system", "/state/worker.lock"))

    assert isinstance(told, Failed)
    assert "/state/worker.lock" in str(told)
    assert "--state and --checkpoints" in told.advice


def test_a_fault_of_the_program_keeps_its_trace() -> None:
    assert in_words(ExceptionGroup("tasks", [CannotServe("this"), KeyError("that")])) is None
