"""What the demo accepts as one process counting on, and what not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.embedded import counting
from kybernate.embedded.counting import CannotCount, counted, gpu_counter, problem_with


def lines(first: int, last: int, held: str = "beef") -> list[str]:
    return [f"Loop {number}: token {held}" for number in range(first, last + 1)]


def test_the_lines_of_both_counters_are_understood() -> None:
    shell = counted(["noise", "Loop 1: token 0a1b"])
    assert (shell.numbers, shell.tokens, shell.last) == ((1,), ("0a1b",), "Loop 1: token 0a1b")
    gpu = counted(["Loop 7: 2 GiB on NVIDIA H200", "Digest at loop 7: 00ff"])
    assert (gpu.numbers, gpu.tokens) == ((7,), ("00ff",))


@given(st.integers(1, 50), st.integers(1, 50))
def test_counting_on_is_no_problem(before: int, more: int) -> None:
    end = before + more
    assert problem_with(counted(lines(1, before)), counted(lines(before + 1, end))) == ""


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (lines(1, 5), lines(7, 9), "left out or said twice"),
        (lines(1, 5), lines(5, 9), "left out or said twice"),
        (lines(1, 5), lines(1, 9), "left out or said twice"),
        (lines(1, 5), lines(6, 9, "cafe"), "not the same process"),
        (lines(1, 5), [], "did not count"),
        ([], lines(1, 5), "did not count"),
    ],
)
def test_anything_else_is_one(before: list[str], after: list[str], told: str) -> None:
    assert told in problem_with(counted(before), counted(after))


def test_without_a_gpu_the_gpu_counter_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    with pytest.raises(CannotCount, match="no NVIDIA GPU"):
        gpu_counter()


def test_the_gpu_example_is_where_the_demo_looks_for_it() -> None:
    assert counting.GPU_EXAMPLE.is_file()
