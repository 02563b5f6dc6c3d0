"""The comparison on GPUs, with simulated ones: its way and its output, not its numbers."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from bench.gpu import report
from bench.gpu.__main__ import Budget

ROOT = Path(__file__).parents[2]


async def bench(*arguments: str) -> tuple[str, dict[str, object]]:
    """What it prints, and its last line."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.gpu", "--driver", "simulated", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        told, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0
    text = told.decode()
    return text, json.loads(text.splitlines()[-1])


async def test_takes_every_side_round_and_leaves_out_what_the_time_does_not_allow() -> None:
    sizes = ("--gib", "0.0005", "0.05")  # a round of 100 times the size would take minutes

    text, result = await bench(*sizes, "--rounds", "1", "--warm-up", "0", "--budget", "60")

    assert "first touch of host memory" in text
    assert "0.05 GiB: no round fits" in text
    told = result["sizes"]
    assert isinstance(told, list)
    (size,) = told
    assert size["rounds"] == 1
    assert size["total_ratio"] > 0
    assert size["content_store_ratio"] > 0
    assert set(size["medians"]) == {report.BARE, report.CONTENT_STORE, report.KYBERNATE}
    assert size["medians"][report.BARE].keys() == size["medians"][report.KYBERNATE].keys()


@pytest.mark.parametrize(("left", "allowed"), [(None, True), (1e6, True), (0.0, False)])
def test_the_budget_counts_what_a_round_will_take(left: float | None, *, allowed: bool) -> None:
    budget = Budget(left)
    budget.spent(2.0, 40.0)
    budget.spent(2.0, 30.0)

    assert budget.allows_round(20.0) is allowed


def test_ratios_are_of_medians() -> None:
    def took(seconds: float) -> dict[str, float]:
        return dict.fromkeys(("driver checkpoint", "dump", "seal", "total"), seconds)

    rounds = {
        "bare": [took(1.0), took(9.0), took(2.0)],
        "content store": [took(8.0)],
        "kybernate": [took(1.0)],
    }

    found = report.ratios(rounds)

    assert found["total_ratio"] == 0.5
    assert found["content_store_ratio"] == 4.0
