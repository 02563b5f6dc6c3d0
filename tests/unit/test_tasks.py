import asyncio
import logging
import os
import signal

import pytest

from kybernate import tasks
from kybernate.problems import Expected


async def test_for_ever_goes_on_after_failures(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    calls = 0
    enough = asyncio.Event()

    async def act() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            enough.set()
        if calls in {2, 3}:
            raise ValueError("bad luck")

    task = asyncio.create_task(tasks.for_ever(act, name="the loop", first=0.001))
    await enough.wait()
    await tasks.end(task)
    assert task.cancelled()
    assert caplog.text.count("the loop failed") == 2
    assert "bad luck" in caplog.text
    assert "the loop works again" in caplog.text


async def test_what_fails_for_long_is_told_rarer_and_rarer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(tasks, "backoff", lambda *_, **__: 0.0)
    failures = 0
    enough = asyncio.Event()

    async def act() -> None:
        nonlocal failures
        failures += 1
        if failures > 100:
            enough.set()
        raise ValueError("bad luck")

    task = asyncio.create_task(tasks.for_ever(act, name="the loop"))
    await enough.wait()
    await tasks.end(task)
    told = [record.getMessage().split(" in a row")[0] for record in caplog.records]
    assert told == [f"the loop failed ({number}" for number in (1, 2, 4, 8, 16, 32, 64)]


@pytest.mark.parametrize(
    ("error", "traced"), [(Expected("as it may be"), False), (ValueError(), True)]
)
async def test_only_what_nobody_expects_is_told_with_its_trace(
    error: Exception, *, traced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tried = asyncio.Event()

    async def act() -> None:
        tried.set()
        raise error

    task = asyncio.create_task(tasks.for_ever(act, name="the loop", first=60.0))
    await tried.wait()
    await asyncio.sleep(0)
    await tasks.end(task)
    [record] = caplog.records
    assert (record.exc_info is not None) is traced


async def test_for_ever_lets_others_run() -> None:
    async def act() -> None: ...

    task = asyncio.create_task(tasks.for_ever(act, name="busy"))
    await asyncio.sleep(0.01)
    await tasks.end(task)


async def test_a_cancellation_inside_for_ever_passes() -> None:
    started = asyncio.Event()

    async def act() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(tasks.for_ever(act, name="waiting"))
    await started.wait()
    await tasks.end(task)
    assert task.cancelled()


def test_backoff_grows_to_its_limit() -> None:
    for failures in range(1, 100):
        wait = tasks.backoff(failures, first=1.0, longest=10.0)
        plain = min(10.0, 2.0 ** (failures - 1))
        assert 0.75 * plain <= wait <= 1.25 * plain


def test_jitter_differs() -> None:
    assert len({tasks.jittered(1.0) for _ in range(10)}) > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_work_in_order(number: signal.Signals) -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    await tasks.run_until_signalled(work())
    assert ended


async def test_work_that_ends_needs_no_signal() -> None:
    async def work() -> None: ...

    await tasks.run_until_signalled(work())


async def test_an_error_of_the_work_is_not_lost() -> None:
    async def work() -> None:
        raise ValueError("told")

    with pytest.raises(ValueError, match="told"):
        await tasks.run_until_signalled(work())


async def test_cancelling_the_runner_ends_the_work() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(tasks.run_until_signalled(work()))
    await started.wait()
    await tasks.end(task)
    assert task.cancelled()
    assert ended.is_set()


async def test_finish_ends_its_work_before_the_cancellation_goes_on() -> None:
    started, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        await go_on.wait()
        done.set()

    task = asyncio.create_task(tasks.finish(work()))
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    await asyncio.wait({task})
    assert done.is_set()
    assert task.cancelled()


async def test_finish_gives_the_result_and_the_error() -> None:
    async def result() -> int:
        return 7

    async def error() -> int:
        raise ValueError("told")

    assert await tasks.finish(result()) == 7
    with pytest.raises(ValueError, match="told"):
        await tasks.finish(error())


async def test_an_error_during_a_cancellation_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        await go_on.wait()
        raise ValueError("heard")

    task = asyncio.create_task(tasks.finish(work()))
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert "heard" in caplog.text
