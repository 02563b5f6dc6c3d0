"""What the preflight looks at before any GPU process is touched, gathered in one go."""

import asyncio
from collections.abc import Mapping, Sequence

from node_worker.gpu import cgroup, host
from node_worker.gpu.port import Gpu, GpuState
from schemas.base import Record
from schemas.gpus import GpuFacts, GpuProcess


class Evidence(Record, frozen=True, kw_only=True):
    gpus: tuple[GpuFacts, ...]
    processes: tuple[GpuProcess, ...]
    states: Mapping[int, GpuState] = {}
    managed: Mapping[int, int] = {}
    """Bytes by process that look like managed memory."""
    available_bytes: int = 0
    """Host memory that can still be had."""
    room_bytes: int | None = None
    """What the container's own memory limit leaves; None where it has none."""


async def gather(gpu: Gpu, pids: Sequence[int]) -> Evidence:
    """The evidence on a container with these processes; empty where none of them uses a GPU."""
    processes = await gpu.processes(pids)
    if not processes:
        return Evidence(gpus=await gpu.facts(), processes=())
    found = [process.pid for process in processes]
    states = await asyncio.gather(*(gpu.state(pid) for pid in found), return_exceptions=True)
    rooms = [room for pid in found if (room := cgroup.room_bytes(pid)) is not None]
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
        room_bytes=min(rooms, default=None),
    )
