"""`kybernate demo`, as a user runs it."""

import asyncio
import re
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from kybernate.embedded import leftovers
from kybernate.embedded.demo import Report
from tests.support.processes import PROGRAM, environment, kybernate

SUMMARY = re.compile(r"demo: counter (\d+) -> (\d+), checkpoint \d+ ms, restore \d+ ms, OK")
FOLDER = re.compile(r"everything of this demo is in (\S+)")


def left_of(output: str) -> tuple[object, ...]:
    """What is still there of the demo that printed this."""
    found = FOLDER.search(output)
    assert found is not None, output
    folder = Path(found[1])
    containerd = folder / "containerd"
    there = (folder,) if folder.exists() else ()
    return (*there, *leftovers.processes(containerd), *leftovers.mounts(containerd))


async def test_the_counter_goes_on_and_nothing_is_left() -> None:
    output = await kybernate("demo")
    assert output.code == 0, output.stdout + output.stderr
    told = output.stdout.splitlines()
    summary = SUMMARY.fullmatch(told[-1])
    assert summary is not None
    assert int(summary[2]) > int(summary[1])
    first_token, last_token = re.findall(r"token ([0-9a-f]{16})$", output.stdout, re.MULTILINE)[::2]
    assert first_token == last_token
    for step in ("dump", "seal", "release", "start"):
        assert re.search(rf"{step} +[\d.]+ m?s$", output.stdout, re.MULTILINE)
        assert re.search(rf"ms +step {step} +\|", output.stdout)
    assert left_of(output.stdout) == ()


async def test_json_is_one_object() -> None:
    output = await kybernate("demo", "--output", "json")
    assert output.code == 0, output.stderr
    report = msgspec.json.decode(output.stdout, type=Report)
    assert report.ok
    assert report.counter_after > report.counter_before
    assert report.token_after == report.token_before
    assert report.checkpoint_bytes > 0
    assert set(report.steps) == {"checkpoint", "restore"}
    assert report.steps["checkpoint"]["dump"] > 0
    assert output.stderr == ""


@asynccontextmanager
async def started() -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, "demo", stdout=PIPE, stderr=PIPE, env=environment(None)
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("everything of this demo is in", signal.SIGINT),
        ("the controller's REST API is at", signal.SIGTERM),
        ("asked for a checkpoint", signal.SIGINT),
        ("  pause", signal.SIGINT),
        ("asked for a restore", signal.SIGTERM),
        ("  create", signal.SIGINT),
    ],
)
async def test_interrupted_anywhere_it_leaves_nothing(point: str, number: signal.Signals) -> None:
    async with started() as process:
        assert process.stdout is not None
        told = ""
        while point not in told:
            line = (await process.stdout.readline()).decode()
            assert line, told
            told += line
        process.send_signal(number)
        rest, errors = await process.communicate()
        assert process.returncode == 130, rest.decode() + errors.decode()
        assert "everything of the demo is removed" in errors.decode()
        assert left_of(told) == ()
