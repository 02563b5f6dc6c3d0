"""Holds a restore back until its checkpoint is known to be whole, without making it wait before.

An OCI createRuntime hook: runc runs it when CRIU has made the namespaces and before CRIU reads any
memory. It reads one word from a FIFO. Whatever else it reads, or nothing because the worker has
died, ends the restore. Without the FIFO there is nothing to wait for: the hook stays in the
container's record, and a later start has no gate.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

NAME: Final = "gate"
WHOLE: Final = "whole"
SHUT: Final = "shut"
_SHELL: Final = "/bin/sh"
_WAIT: Final = f'test -e "$1" || exit 0; read -r word <"$1" && test "$word" = {WHOLE}'


def hook(work: Path, *, seconds: float) -> dict[str, Any]:
    """The hook that waits at the gate in this folder, for so long at most."""
    args = [_SHELL, "-c", _WAIT, "kybernate-gate", str(work / NAME)]
    return {"path": _SHELL, "args": args, "timeout": max(1, math.ceil(seconds))}


def is_gate(hook: dict[str, Any]) -> bool:
    """Whether it waits at a gate, in whatever folder."""
    return _WAIT in (hook.get("args") or [])


class Gate:
    """Nobody passes before `open`."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    def open(self) -> None:
        os.write(self._writer, f"{WHOLE}\n".encode())


@contextmanager
def gate_in(work: Path) -> Iterator[Gate]:
    """A gate for as long as the block runs, and shut from then on."""
    os.mkfifo(work / NAME, 0o600)
    writer = os.open(work / NAME, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield Gate(writer)
    finally:
        shut(work)
        os.close(writer)


def shut(work: Path) -> None:
    """Turn away who waits at the gate and who still comes, also at one of a worker that died."""
    path = work / NAME
    try:
        waking = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # who waits for a writer goes on
    except FileNotFoundError:
        return
    try:
        draft = path.with_suffix(".new")
        draft.write_text(f"{SHUT}\n")
        draft.replace(path)
    finally:
        os.close(waking)
