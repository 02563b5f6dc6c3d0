"""The lines that the OCI runtime and the worker exchange."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_worker.containerd.port import RestorePaths
from node_worker.pods import requests
from node_worker.pods.requests import GoneTold, Malformed, RestoreAsked, RunningAsked, parse


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (
            b"restore\ta1\t12\t/run/a b/c",
            RestoreAsked(container="a1", asker=12, bundle=Path("/run/a b/c")),
        ),
        (b"running\ta.b-c_d\t1", RunningAsked(container="a.b-c_d", asker=1)),
        (b"gone\ta1", GoneTold(container="a1")),
    ],
)
def test_a_request_is_understood(line: bytes, request_: requests.Request) -> None:
    assert parse(line) == request_


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"restore",
        b"restore\ta\t1",
        b"restore\ta\t1\trelative",
        b"restore\ta\t1\t/a/../b",
        b"restore\ta\t1\t/a\x01",
        b"restore\t../a\t1\t/a",
        b"restore\t.\t1\t/a",
        b"restore\ta/b\t1\t/a",
        b"restore\ta\t-1\t/a",
        b"restore\ta\t0\t/a",
        b"restore\ta\t12345678901\t/a",
        b"running\ta\t\xd9\xa1",
        b"running\ta",
        b"gone\t",
        b"gone\ta\tb",
        b"gone\ta\n",
        b"unheard\ta",
        b"\xff",
    ],
)
def test_everything_else_is_refused(line: bytes) -> None:
    with pytest.raises(Malformed):
        parse(line)


@given(st.binary(max_size=200))
def test_no_line_does_more_than_being_refused(line: bytes) -> None:
    try:
        request = parse(line)
    except Malformed:
        return
    assert "/" not in request.container
    assert not request.container.startswith(".")


@given(st.text())
def test_the_answer_of_a_failure_is_one_line_that_fits(words: str) -> None:
    line = requests.failed(words)
    assert line.startswith(b"error\t")
    assert line.count(b"\t") == 1
    assert line.index(b"\n") == len(line) - 1
    assert len(line) < 4096


def test_a_long_failure_is_cut() -> None:
    assert len(requests.failed("é" * 10_000)) < 4096


def test_the_answers_of_a_success() -> None:
    paths = RestorePaths(image_path="/i m", work_path="/w")
    assert requests.restored(paths) == b"ok\t/i m\t/w\n"
    assert requests.restored(None) == b"image\n"
    assert requests.runs() == b"ok\n"


def test_a_path_that_does_not_fit_into_a_line_is_not_handed_out() -> None:
    with pytest.raises(Malformed):
        requests.restored(RestorePaths(image_path="/a\nb", work_path="/w"))
