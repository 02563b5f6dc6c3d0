"""How the program ends: exit codes that scripts can rely on, and errors in words.

0 is success and 2 wrong usage (click's own); the other codes are the classes here.
"""

from typing import IO, Any

import click

from schemas.failures import Failure
from schemas.reasons import DEADLINE_EXCEEDED


class Stop(click.ClickException):
    """The end of the program, with what is wrong and what to do about it."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"kybernate: {self.message}", file=file, err=file is None)
        if self.advice:
            click.echo(f"  what to do: {self.advice}", file=file, err=file is None)


class Failed(Stop):
    """The action failed or was cancelled; the demo was not what it has to be."""

    exit_code = 1


class Unreachable(Stop):
    """No controller answers, or NATS lets a service not in."""

    exit_code = 3


class Refused(Stop):
    """What was asked for does not exist or is not allowed; nothing was changed."""

    exit_code = 4


class TimedOut(Stop):
    """The deadline passed before the action ended."""

    exit_code = 5


class Interrupted(Stop):
    """Ctrl-C."""

    exit_code = 130


def failed(failure: Failure, what: str) -> Stop:
    where = f" in step {failure.step}" if failure.step else ""
    kind = TimedOut if failure.reason == DEADLINE_EXCEEDED else Failed
    return kind(f"{what} failed{where}: {failure.message} ({failure.reason})", failure.advice)
