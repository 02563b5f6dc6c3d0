"""The command line while it waits for an action: words, bars, outages, interruptions."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from kybernate.cli import connection, main
from kybernate.cli import program as program_module
from kybernate.cli.connection import Connection
from schemas.actions import Action, ActionState, StepProgress
from schemas.requests import Problem
from tests.support.asking import CHECKPOINT, DONE, FAILURE, RUNNING, call
from tests.support.rest_server import RestServer

CUT_OFF = Problem(message="NATS is gone", advice="start NATS")


@contextlib.contextmanager
def beside(act: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_retries_are_told(server: RestServer) -> None:
    again = msgspec.structs.replace(RUNNING, attempt=2, earlier_failures=(FAILURE,))
    server.accept(RUNNING, RUNNING, again, DONE)
    assert "attempt 2 because: CRIU cannot dump" in call(server, "checkpoint", "counter").stderr


def test_a_watch_that_breaks_off_is_taken_up_again(server: RestServer) -> None:
    server.accept(RUNNING, RUNNING)

    def end_later() -> None:
        while not any(asked.endswith("/watch") for asked, _, _ in server.asked):
            time.sleep(0.01)
        server.accept(RUNNING, DONE)

    with beside(end_later):
        result = call(server, "checkpoint", "counter")
    assert result.exit_code == 0
    assert result.stderr.count("dump") == 1


def test_an_outage_is_told_once_and_waited_for(server: RestServer) -> None:
    server.accept(RUNNING)
    server.answer("GET /api/v1/actions/a1/watch", CUT_OFF, status=503)

    def end_later() -> None:
        while sum(asked.endswith("/watch") for asked, _, _ in server.asked) < 4:
            time.sleep(0.01)
        server.accept(RUNNING, DONE)

    with beside(end_later):
        result = call(server, "checkpoint", "counter")
    assert result.exit_code == 0
    assert result.stderr.count("NATS is gone; asking on for up to 60 s") == 1


def test_an_outage_that_does_not_end_names_the_action(
    server: RestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UNREACHABLE_FOR", 0.1)
    server.accept(RUNNING)
    server.answer("GET /api/v1/actions/a1/watch", CUT_OFF, status=503)
    result = call(server, "checkpoint", "counter")
    assert result.exit_code == 3
    assert "what became of action a1 is not known" in result.stderr
    assert "start NATS; `kybernate describe action a1` tells then" in result.stderr


def test_cancel_waits_for_the_end(server: RestServer) -> None:
    cancelled = msgspec.structs.replace(RUNNING, state=ActionState.CANCELLED)
    server.answer("POST /api/v1/actions/a1/cancel", RUNNING, status=202)
    server.answer("GET /api/v1/actions/a1/watch", cancelled)
    assert call(server, "cancel", "a1").stdout == "a1  cancelled\n"
    server.answer("GET /api/v1/actions/a1/watch", DONE)
    late = call(server, "cancel", "a1")
    assert late.exit_code == 1
    assert "was not cancelled" in late.stderr


def waiting(server: RestServer, terminal: int | None = None) -> "subprocess.Popen[str]":
    """A command in a process of its own that waits for its action, and has begun to."""
    listening = ("env", "--default-signal=INT")  # a shell's background job hands on that it is deaf
    command = (sys.executable, "-m", "kybernate.cli", "checkpoint", "counter")
    process = subprocess.Popen(
        [*listening, *command, "--server", server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if terminal is None else terminal,
        text=True,
    )
    while not any(asked.endswith("/watch") for asked, _, _ in server.asked):
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_an_interrupted_wait_leaves_the_action_alone(server: RestServer) -> None:
    server.accept(RUNNING, RUNNING)
    process = waiting(server)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "interrupted; action a1 goes on" in errors
    assert "kybernate cancel a1" in errors
    assert not any(asked.endswith("/cancel") for asked, _, _ in server.asked)


def test_an_order_that_was_interrupted_names_the_action_that_may_be(
    server: RestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(*_: object) -> Action:
        raise KeyboardInterrupt

    monkeypatch.setattr(Connection, "order", cut_short)
    result = call(server, "checkpoint", "counter")
    assert result.exit_code == 130
    assert "may have been asked for already" in result.stderr
    assert "kybernate describe action " in result.stderr


def test_an_interrupted_start_ends_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program_module, "program", cut_short)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


def test_on_a_terminal_there_are_bars(server: RestServer) -> None:
    total = StepProgress(step="hash", started=1.0, done_bytes=1024, total_bytes=4096)
    again = msgspec.structs.replace(RUNNING, attempt=2, earlier_failures=(FAILURE,))
    server.accept(again, msgspec.structs.replace(again, steps=(*RUNNING.steps, total)))
    reader, writer = pty.openpty()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all, reader)
        process = waiting(server, terminal=writer)
        os.close(writer)
        time.sleep(0.3)  # a bar is drawn ten times a second
        server.accept(RUNNING, DONE)
        stdout, _ = process.communicate()
        shown = reading.result()
    assert process.returncode == 0
    assert stdout.startswith(CHECKPOINT)
    assert "hash" in shown
    assert "━" in shown
    assert "250 ms" in shown
    assert "attempt 2 because: CRIU cannot dump a socket" in shown


def read_all(reader: int) -> str:
    """What a terminal was sent, up to its end, which Linux tells as an error."""
    parts = []
    with os.fdopen(reader, "rb", buffering=0) as file, contextlib.suppress(OSError):
        while part := file.read(65536):
            parts.append(part)
    return b"".join(parts).decode()
