"""What stands against a checkpoint, found before anything is touched. Pure: facts to obstacles.

It names what CRIU would fail on anyway, in words and without stopping anybody; and what it would
hang on. What is not known here to fail is left to CRIU and its log.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from node_worker.processes import OpenFile, Process, TcpConnection
from node_worker.sizes import in_words
from schemas import reasons
from schemas.failures import Failure
from schemas.orders import OutsideTcp

DISK_MARGIN: Final = 64 * 1024 * 1024
"""Beside the memory: other images, logs, the manifest."""

MEMORY_MARGIN: Final = 256 * 1024 * 1024
"""What the driver and CRIU need beside a GPU's memory."""

_SHOWN: Final = 5
_NVIDIA: Final = "/dev/nvidia"
_SUPPORTED_MAJORS: Final = frozenset({1, 4, 5, *range(136, 144)})  # memory devices and terminals
_SUPPORTED_DEVICES: Final = frozenset({(10, 200), (10, 235)})  # tun, autofs
_UNSUPPORTED_KINDS: Final = {
    "[io_uring]": "io_uring (for libuv and Node.js: UV_USE_IO_URING=0)",
    "[perf_event]": "a performance counter",
    "[userfaultfd]": "userfaultfd",
    "bpf-prog": "a BPF program",
    "bpf_link": "a BPF link",
    "seccomp notify": "a seccomp supervisor",
    "[landlock-ruleset]": "a Landlock rule set being made",
    "[fscontext]": "a file system being mounted",
    "kvm-vm": "a virtual machine",
    "kvm-vcpu": "a virtual machine",
}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that the decision on a container depends on."""

    processes: tuple[Process, ...]
    connections: tuple[TcpConnection, ...] = ()
    outside_tcp: OutsideTcp = OutsideTcp.CLOSE
    other_users: bool = True
    """Whether CRIU can dump processes of other users than root."""
    shared_pids: bool = False
    """A pod's container without a PID namespace of its own."""
    terminal: bool = False
    cgroup_v1: bool = False
    free_memory: int
    gpu_bytes: int = 0
    """GPU memory, which goes to the host's memory and then to disk."""
    gpu_pids: frozenset[int] = frozenset()
    """Processes whose GPU devices the driver closes before the dump."""


def obstacles(facts: Facts) -> tuple[Failure, ...]:
    """Everything that stands against it, the gravest first; empty when nothing does."""
    return tuple(_all(facts))


def lack_of_disk(needed: int, free: int) -> tuple[Failure, ...]:
    """Whether a checkpoint that writes so much has no room."""
    if (disk := needed + DISK_MARGIN) <= free:
        return ()
    told = Failure(
        reason=reasons.NOT_ENOUGH_DISK,
        message=f"the checkpoint needs about {in_words(disk)}, "
        f"the checkpoint store has {in_words(free)} free",
        advice="Free space, delete checkpoints, or move the store to a larger file system.",
    )
    return (told,)


def memory_bytes(facts: Facts) -> int:
    """What CRIU will write: the processes' memory, shared memory counted once, and the GPU's."""
    shared = max((process.shared_bytes for process in facts.processes), default=0)
    return sum(process.private_bytes for process in facts.processes) + shared + facts.gpu_bytes


def _all(facts: Facts) -> Iterator[Failure]:
    if not facts.processes:
        yield Failure(
            reason=reasons.NOT_RUNNING,
            message="the container has no process any more",
            advice="Start the container first.",
        )
    for process in facts.processes:
        yield from _of_process(process, facts)
    yield from _of_users(facts)
    if facts.shared_pids:
        yield Failure(
            reason=reasons.CANNOT_BE_CHECKPOINTED,
            message="the container shares process IDs with its pod or its node, where others may "
            "have them when it resumes",
            advice="Run the pod without hostPID and shareProcessNamespace.",
        )
    yield from _of_connections(facts)
    if facts.terminal:
        yield Failure(
            reason=reasons.CANNOT_BE_CHECKPOINTED,
            message="the container was made with a terminal, whose other end is outside of it",
            advice="Run the container without a terminal (tty: false).",
        )
    yield from _of_memory(facts)


def _of_process(process: Process, facts: Facts) -> Iterator[Failure]:
    if process.state == "T" and facts.cgroup_v1:
        yield Failure(
            reason=reasons.STOPPED_PROCESS,
            message=f"{_name(process)} is stopped, and CRIU hangs on a stopped process in a "
            "frozen cgroup of version 1",
            advice="Continue the process (SIGCONT) first, or use a node with cgroup v2.",
        )
    if process.tracer or process.state == "t":
        yield Failure(
            reason=reasons.CANNOT_BE_CHECKPOINTED,
            message=f"{_name(process)} is held by a debugger or tracer (pid {process.tracer})",
            advice="End the debugger or tracer and try again.",
        )
    for file in process.files:
        if file.dated:
            yield Failure(
                reason=reasons.CANNOT_BE_CHECKPOINTED,
                message=f"{_name(process)} has {file.target} open as descriptor "
                f"{file.descriptor}: a file of a configMap, a secret or a token, which has another "
                "path in each pod",
                advice="Close it after reading, or mount the file by its subPath.",
            )
        elif why := _cannot_be_dumped(file, gpu=process.pid in facts.gpu_pids):
            yield Failure(
                reason=reasons.CANNOT_BE_CHECKPOINTED,
                message=f"{_name(process)} has {why} open as descriptor {file.descriptor}, "
                "which CRIU cannot dump",
                advice="Close it before the checkpoint, or run the program without it.",
            )


def _of_users(facts: Facts) -> Iterator[Failure]:
    others = [process for process in facts.processes if not process.of_root]
    if others and not facts.other_users:
        yield Failure(
            reason=reasons.CANNOT_BE_CHECKPOINTED,
            message=f"{_name(others[0])} does not run as root (user and group), and containerd "
            "lacks CAP_SYS_RESOURCE on this node, without which its CRIU can dump root's alone",
            advice="Give containerd that capability (systemd does; some machines that are "
            "containers themselves do not), or let it use the CRIU of Kybernate's image "
            "(`kybernate node install --criu`), which does without.",
        )


def _cannot_be_dumped(file: OpenFile, *, gpu: bool) -> str:
    """What it is, if CRIU cannot dump it; empty if it can, or if nobody here knows."""
    if file.device is None:
        return _UNSUPPORTED_KINDS.get(file.target.removeprefix("anon_inode:"), "")
    if gpu and file.target.startswith(_NVIDIA):
        return ""
    known = file.device[0] in _SUPPORTED_MAJORS or file.device in _SUPPORTED_DEVICES
    if known and not file.block:
        return ""
    major, minor = file.device
    return f"the device {file.target} ({major}:{minor})"


def _of_connections(facts: Facts) -> Iterator[Failure]:
    outside = [one for one in facts.connections if one.outside]
    if facts.outside_tcp is not OutsideTcp.REFUSE or not outside:
        return
    shown = ", ".join(f"{one.local} → {one.peer}" for one in outside[:_SHOWN])
    more = f" and {len(outside) - _SHOWN} more" if len(outside) > _SHOWN else ""
    yield Failure(
        reason=reasons.OUTSIDE_CONNECTION,
        message=f"TCP connections to outside the container are open: {shown}{more}",
        advice="Close them first, or let them be closed on resume (outside TCP: close).",
    )


def _of_memory(facts: Facts) -> Iterator[Failure]:
    memory = facts.gpu_bytes + MEMORY_MARGIN
    if facts.gpu_bytes and memory > facts.free_memory:
        yield Failure(
            reason=reasons.NOT_ENOUGH_MEMORY,
            message=f"the GPU's memory needs about {in_words(memory)} of the host's, "
            f"the container can have {in_words(facts.free_memory)}",
            advice="Free memory on the node, or raise the container's memory limit.",
        )


def _name(process: Process) -> str:
    return f"process {process.inner_pid} ({process.name})"
