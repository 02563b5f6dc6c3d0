"""What a waiting user sees: bars on a terminal, otherwise one plain line per finished step.

Both go to standard error, so that standard output holds the result alone.
"""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click

from kybernate.cli import text
from schemas.actions import Action, StepProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Display(Protocol):
    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, action: Action) -> None: ...

    def remark(self, words: str) -> None: ...


class Attempts:
    """Why an action is tried again, told once for each attempt."""

    def __init__(self) -> None:
        self._seen = 1

    def news(self, action: Action) -> str:
        if action.attempt <= self._seen or not action.earlier_failures:
            return ""
        self._seen = action.attempt
        return f"attempt {action.attempt} because: {action.earlier_failures[-1].message}"


def display() -> Display:
    return Bars() if sys.stderr.isatty() else Lines()


class Lines:
    """One line per finished step and per retry."""

    def __init__(self) -> None:
        self._told: set[tuple[int, str, str]] = set()
        self._attempts = Attempts()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is held."""

    def show(self, action: Action) -> None:
        if news := self._attempts.news(action):
            self.remark(news)
        for step in action.steps:
            if (
                step.seconds is not None
                and (key := (action.attempt, step.step, step.note)) not in self._told
            ):
                self._told.add(key)
                click.echo(line(step), err=True)

    def remark(self, words: str) -> None:
        click.echo(f"  {words}", err=True)


class Bars:
    """A bar per step of the present attempt."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[tuple[int, str], TaskID] = {}
        self._attempts = Attempts()

    def __enter__(self) -> Self:
        from rich import progress  # noqa: PLC0415 - too slow to import for those who never wait
        from rich.console import Console  # noqa: PLC0415

        self._bars = progress.Progress(
            progress.SpinnerColumn(finished_text="✓"),
            progress.TextColumn("{task.description:<10}"),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()

    def show(self, action: Action) -> None:
        if news := self._attempts.news(action):
            self.remark(news)
        for step in action.steps:
            self._show(action.attempt, step)

    def remark(self, words: str) -> None:
        """Above the bars."""
        if self._bars:
            self._bars.console.print(f"  {words}", markup=False, highlight=False)

    def _show(self, attempt: int, step: StepProgress) -> None:
        if self._bars is None:
            return
        key = (attempt, step.step)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(step.step, total=None, note="")
        if step.seconds is not None:
            self._bars.update(self._tasks[key], total=1, completed=1, note=_note(step))
        elif step.total_bytes:
            self._bars.update(
                self._tasks[key],
                total=step.total_bytes,
                completed=step.done_bytes or 0,
                note=_note(step),
            )


def line(step: StepProgress) -> str:
    return f"  {step.step:<10} {_note(step)}".rstrip()


def _note(step: StepProgress) -> str:
    parts = []
    if step.seconds is not None:
        parts.append(f"{text.seconds(step.seconds):>8}")
    if step.done_bytes:
        parts.append(text.size(step.done_bytes))
    if step.note:
        parts.append(step.note)
    return "  ".join(parts)
