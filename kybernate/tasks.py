"""Small helpers for asyncio tasks: loops that go on for ever, back-off, signals, clean endings."""

import asyncio
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kybernate.problems import trace_of

T = TypeVar("T")
U = TypeVar("U")
log = logging.getLogger(__name__)

_SPREAD = 0.25
_ENDING = (signal.SIGINT, signal.SIGTERM)


def jittered(seconds: float) -> float:
    """About as long, never the same: so that many processes do not act in step."""
    return seconds * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311 - no secret


def backoff(failures: int, *, first: float = 0.2, longest: float = 15.0) -> float:
    """How long to wait after so many failures in a row: doubling, limited, jittered."""
    return jittered(min(longest, first * 2.0 ** min(max(failures - 1, 0), 30)))


async def for_ever(
    act: Callable[[], Awaitable[object]],
    *,
    name: str,
    pause: float = 0.0,
    first: float = 0.2,
    longest: float = 15.0,
) -> None:
    """Call `act` again and again until cancelled, `pause` seconds (jittered) between two calls.

    A failure is logged and followed by a longer and longer wait, until a call succeeds again.
    """
    failures = 0
    while True:
        try:
            await act()
        except Exception as error:  # noqa: BLE001 - logged, and tried again
            failures += 1
            wait = backoff(failures, first=first, longest=longest)
            _log_failure(name, error, failures, wait)
        else:
            if failures:
                log.info("%s works again", name)
            failures, wait = 0, jittered(pause)
        _heed_cancellation()
        await asyncio.sleep(wait)


def _heed_cancellation() -> None:
    """What was called may have swallowed it: `asyncio.wait_for` of Python 3.11 can."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _log_failure(name: str, error: Exception, failures: int, wait: float) -> None:
    """The first failure with its trace, if it is not to be expected. Then rarer and rarer (the
    2nd, 4th, 8th, …): what lasts for hours must not fill a disk.
    """
    level = logging.WARNING if failures.bit_count() == 1 else logging.DEBUG
    said = f"{type(error).__name__}: {error}"
    log.log(
        level,
        "%s failed (%d in a row, again in %.1f s): %s",
        name,
        failures,
        wait,
        said,
        exc_info=trace_of(error) if failures == 1 else None,
    )


@contextmanager
def _signals() -> "Iterator[asyncio.Future[signal.Signals]]":
    """The first SIGINT or SIGTERM that arrives while the block runs."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[signal.Signals] = loop.create_future()
    for number in _ENDING:
        loop.add_signal_handler(number, _arrive, arrived, number)
    try:
        yield arrived
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)


def _arrive(arrived: "asyncio.Future[signal.Signals]", number: signal.Signals) -> None:
    if not arrived.done():
        arrived.set_result(number)


async def run_until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until it ends or SIGINT or SIGTERM arrives; then it is cancelled and awaited."""
    with _signals() as arrived:
        task = asyncio.create_task(work)
        try:
            either: set[asyncio.Future[Any]] = {task, arrived}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                await end(task)
    if not task.cancelled():
        task.result()


async def together(one: Awaitable[T], other: Awaitable[U]) -> tuple[T, U]:
    """Both results, once both have ended: nothing goes on beside whoever deals with a failure."""
    works = asyncio.ensure_future(one), asyncio.ensure_future(other)
    await asyncio.wait(works)
    problems = [work.exception() for work in works]
    for problem in problems:
        if problem is not None:
            raise problem
    return works[0].result(), works[1].result()


async def all_of(acts: Iterable[Awaitable[None]]) -> None:
    """The same of any number that have nothing to tell."""
    for outcome in await asyncio.gather(*acts, return_exceptions=True):
        if outcome is not None:
            raise outcome


async def all_or_none(acts: Iterable[Awaitable[None]]) -> None:
    """The same, but the first failure calls the others off, and is told when they have ended."""
    works = [asyncio.ensure_future(act) for act in acts]
    try:
        await asyncio.wait(works, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for work in works:
            if not work.done():
                await end(work)
    for problem in [work.exception() for work in works if not work.cancelled()]:
        if problem is not None:
            raise problem


async def end(task: "asyncio.Future[Any]") -> None:
    """Cancel a task and wait until it has ended, however it ends."""
    task.cancel()
    await asyncio.wait({task})


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end though the caller is cancelled; then the cancellation goes on.

    For what must not be left half done: a last report, an undo. `work` limits its own time.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled() and (problem := task.exception()):
        log.error("failed while being cancelled: %s", problem, exc_info=problem)
    raise cancelled
