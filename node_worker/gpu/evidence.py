"""What the preflight looks at before any GPU process is touched, gathered in one go."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from node_worker.gpu import cgroup, host
from node_worker.gpu.port import Gpu, GpuState
from schemas.base import Record
from schemas.gpus import GpuFacts, GpuProcess


class Room(Record, frozen=True, kw_only=True):
    """A memory limit: of a container, of its pod, or of more."""

    left: int
    needed: int
    """GPU memory of the processes below it."""


class Evidence(Record, frozen=True, kw_only=True):
    gpus: tuple[GpuFacts, ...]
    processes: tuple[GpuProcess, ...]
    states: Mapping[int, GpuState] = {}
    managed: Mapping[int, int] = {}
    """Bytes by process that look like managed memory."""
    available_bytes: int = 0
    """Host memory that can still be had."""
    rooms: tuple[Room, ...] = ()


async def gather(gpu: Gpu, pids: Sequence[int]) -> Evidence:
    """The evidence on containers with these processes; empty where none of them uses a GPU."""
    processes = await gpu.processes(pids)
    if not processes:
        return Evidence(gpus=await gpu.facts(), processes=())
    found = [process.pid for process in processes]
    states = await asyncio.gather(*(gpu.state(pid) for pid in found), return_exceptions=True)
    return Evidence(
        gpus=await gpu.facts(),
        processes=processes,
        states={
            pid: state
            for pid, state in zip(found, states, strict=True)
            if isinstance(state, GpuState)
        },
        managed={pid: host.managed_bytes_of(pid) for pid in found},
        available_bytes=host.available_bytes(),
        rooms=_rooms(processes),
    )


def _rooms(processes: Sequence[GpuProcess]) -> tuple[Room, ...]:
    """Of each group, so that a limit is held against the processes that it is for."""
    rooms: dict[Path, Room] = {}
    for process in processes:
        for group, left in cgroup.rooms(process.pid).items():
            others = rooms[group].needed if group in rooms else 0
            rooms[group] = Room(left=left, needed=others + sum(process.usage.values()))
    return tuple(rooms.values())
