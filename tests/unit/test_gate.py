"""The gate that CRIU waits at, with the shell that really waits there."""

import asyncio
import os
from asyncio.subprocess import Process
from pathlib import Path

from node_worker import gate


async def waiting(work: Path) -> Process:
    """The hook, as runc runs it."""
    return await asyncio.create_subprocess_exec(*gate.hook(work, seconds=60)["args"])


async def stands_still(process: Process) -> bool:
    return not (await asyncio.wait({asyncio.ensure_future(process.wait())}, timeout=0.1))[0]


async def test_nobody_passes_before_it_opens(tmp_path: Path) -> None:
    with gate.gate_in(tmp_path) as way:
        early = await waiting(tmp_path)
        assert await stands_still(early)
        way.open()
        assert await early.wait() == 0


async def test_it_can_open_before_anybody_comes(tmp_path: Path) -> None:
    with gate.gate_in(tmp_path) as way:
        way.open()
        late = await waiting(tmp_path)
        assert await late.wait() == 0


async def test_it_shuts_when_it_was_not_opened(tmp_path: Path) -> None:
    with gate.gate_in(tmp_path):
        early = await waiting(tmp_path)
        assert await stands_still(early)
    assert await early.wait() != 0
    late = await waiting(tmp_path)
    assert await late.wait() != 0


async def test_one_of_a_dead_worker_is_shut(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / gate.NAME)
    early = await waiting(tmp_path)
    assert await stands_still(early)
    gate.shut(tmp_path)
    assert await early.wait() != 0


async def test_a_later_start_has_no_gate(tmp_path: Path) -> None:
    gate.shut(tmp_path)
    later = await waiting(tmp_path)
    assert await later.wait() == 0


def test_it_waits_for_a_time_only(tmp_path: Path) -> None:
    assert gate.hook(tmp_path, seconds=2.1)["timeout"] == 3
    assert gate.hook(tmp_path, seconds=-1)["timeout"] == 1
    assert gate.is_gate(gate.hook(tmp_path, seconds=1))
    assert not gate.is_gate({"path": "/bin/true"})
