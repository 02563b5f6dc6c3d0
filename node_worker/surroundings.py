"""What the worker sees of a container's processes from outside, in one look."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from node_worker import processes
from node_worker.processes import Process, TcpConnection
from schemas.gpus import GpuProcess


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    processes: tuple[Process, ...]
    connections: tuple[TcpConnection, ...] = ()
    cgroup_v1: bool = False
    free_memory: int = 0
    limits_told: bool = True
    """Whether the kernel tells CRIU the limits of other users' processes."""


Look = Callable[[Sequence[int]], Surroundings]


def look(pids: Sequence[int]) -> Surroundings:
    """Blocks for a moment."""
    found = processes.look(pids)
    if not found:
        return Surroundings(processes=())
    return Surroundings(
        processes=found,
        connections=processes.tcp_connections(found),
        cgroup_v1=processes.is_cgroup_v1(found[0].pid),
        free_memory=processes.free_memory(found[0].pid),
        limits_told=processes.other_users_limits_are_told(found),
    )


def numbered_inside(
    gpu_processes: Iterable[GpuProcess], seen: Iterable[Process]
) -> tuple[GpuProcess, ...]:
    """By their numbers in the container's PID namespace, which a restore keeps."""
    inner = {process.pid: process.inner_pid for process in seen}
    return tuple(
        msgspec.structs.replace(process, pid=inner.get(process.pid, process.pid))
        for process in gpu_processes
    )


def numbered_outside(
    gpu_processes: Iterable[GpuProcess], seen: Iterable[Process]
) -> tuple[GpuProcess, ...]:
    """The same processes by their numbers on the host; those that are gone are left out."""
    outer = {process.inner_pid: process.pid for process in seen}
    return tuple(
        msgspec.structs.replace(process, pid=outer[process.pid])
        for process in gpu_processes
        if process.pid in outer
    )
