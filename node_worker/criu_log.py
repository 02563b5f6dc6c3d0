"""From CRIU's log to a cause in words: what stopped it, what to do, and the lines that say so.

The table names the errors that users meet. The first line of the log that the table knows wins:
what CRIU reports after its first error are mostly consequences of it.
"""

import re
from pathlib import Path
from typing import Final

import msgspec

from schemas import reasons

DUMP_LOG: Final = "dump.log"
RESTORE_LOG: Final = "restore.log"

LAST_LINES: Final = 12
_TAIL_BYTES: Final = 2 * 1024 * 1024
_ERROR: Final = re.compile(
    r"^(?:\(\d+\.\d+\)\s+)?(?:pie:\s+)?(?:\s*\d+:\s+)?Error\s+\([^)]*\):\s*(?P<text>.*)$"
)

_NOISE: Final = re.compile(r"Can't setup RLIMIT_NOFILE|(?:Dumping|Restoring) FAILED")
"""Errors that CRIU goes on after, or that only say that there were others."""


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Why CRIU gave up, as far as its log tells."""

    reason: str
    message: str
    advice: str
    lines: tuple[str, ...]
    """The log's last lines."""
    passes: bool = False
    """Another attempt may find it otherwise."""

    def __str__(self) -> str:
        return "\n".join((self.message, *(f"  criu: {line}" for line in self.lines)))


class _Known(msgspec.Struct, frozen=True):
    pattern: str
    reason: str
    message: str
    advice: str
    passes: bool = False


_NOT_POSSIBLE: Final = reasons.CANNOT_BE_CHECKPOINTED
_BY_PHASE: Final = ""
"""The reason is the caller's: that the dump failed, or the restore."""

_KNOWN: Final = (
    _Known(
        r"Can't get rlimit",
        _NOT_POSSIBLE,
        "a process does not run as root, and containerd lacks CAP_SYS_RESOURCE, without which this "
        "CRIU dumps root's alone",
        "Give containerd that capability, or let it use the CRIU of Kybernate's image "
        "(`kybernate node install --criu`), which does without.",
    ),
    _Known(
        r"No space left on device|Disk quota exceeded",
        reasons.DISK_FULL,
        "the disk filled up while CRIU was writing",
        "Free space on the file system of the checkpoint store, or move the store.",
    ),
    _Known(
        r"Cannot allocate memory",
        reasons.NOT_ENOUGH_MEMORY,
        "the host or the container's memory limit leaves too little memory",
        "Free memory on the node or raise the container's memory limit.",
    ),
    _Known(
        r"io_uring|send_fds failed|Can't retrieve FDs",
        _NOT_POSSIBLE,
        "a process holds a file that cannot be handed to CRIU, as io_uring's",
        "Turn io_uring off in the program (for libuv and Node.js: UV_USE_IO_URING=0).",
    ),
    _Known(
        r"Unsupported proto 262",
        _NOT_POSSIBLE,
        "a process uses a multipath TCP socket, which CRIU cannot dump",
        "For Go programs set GODEBUG=multipathtcp=0 in the container's environment.",
    ),
    _Known(
        r"In-flight connection",
        _NOT_POSSIBLE,
        "a connection was being opened and not yet accepted",
        "Try again: the program accepts its waiting connections in the meantime.",
        passes=True,
    ),
    _Known(
        r"Connected TCP socket",
        reasons.OUTSIDE_CONNECTION,
        "there is an open TCP connection",
        "Let CRIU handle them: tcp-established in the options file that runc reads.",
    ),
    _Known(
        r"corked dgram socket",
        _NOT_POSSIBLE,
        "a datagram socket holds back data (UDP_CORK)",
        "Try again once the program has sent it.",
    ),
    _Known(
        r"file locks are hold",
        _NOT_POSSIBLE,
        "a process holds a file lock that CRIU was not told to keep",
        "Let CRIU keep them: file-locks in the options file that runc reads.",
    ),
    _Known(
        r"External socket (?:is used|found in image)|name-less external socket|unreachable peer"
        r"|half of stream unix connection",
        _NOT_POSSIBLE,
        "a unix socket is connected to a process outside the container",
        "Close the connection first, or stop mounting the host's socket into the container.",
    ),
    _Known(
        r"Can't dump file \d+ of that type",
        _NOT_POSSIBLE,
        "a process holds a file of a kind that CRIU cannot dump",
        "Close it before the checkpoint, or run the program without it.",
    ),
    _Known(
        r"Unsupported mapping found|Can't handle non-regular mapping",
        _NOT_POSSIBLE,
        "a process maps device memory that CRIU cannot dump",
        "Close the device first; GPU memory must be checkpointed by the driver before the dump.",
    ),
    _Known(
        r"Can't dump ghost file",
        _NOT_POSSIBLE,
        "a deleted file that is still open is larger than CRIU's limit",
        "Raise ghost-limit in the options file that runc reads, or close the file.",
    ),
    _Known(
        r"session leader .* outside of its pid namespace|without correspond master|shell-job",
        _NOT_POSSIBLE,
        "the container is attached to a terminal outside of it",
        "Run the container without a terminal.",
    ),
    _Known(
        r"uprobes vma",
        _NOT_POSSIBLE,
        "a tracing tool has placed probes into a process",
        "End the tracing (eBPF uprobes) and try again.",
    ),
    _Known(
        r"already (?:traced|ptraced)|is being traced|PTRACE_SEIZE"
        r"|Unable to (?:seize|attach|interrupt|detach)",
        _NOT_POSSIBLE,
        "a process could not be seized: a debugger or tracer holds it, or it has just ended",
        "End the debugger or tracer and try again.",
    ),
    _Known(
        r"Individually stopped threads|Unable to freeze cgroup|Timeout reached",
        _NOT_POSSIBLE,
        "a process could not be frozen",
        "A process that hangs in the kernel (state D) or single stopped threads prevent it.",
    ),
    _Known(
        r"nested .* namespace|Nested mount namespaces",
        _NOT_POSSIBLE,
        "a process inside the container lives in namespaces of its own",
        "Containers inside the container cannot be checkpointed.",
    ),
    _Known(
        r"fsnotify:.*Can't (?:dump that handle|find suitable path)",
        _NOT_POSSIBLE,
        "a process watches (inotify) a file that was deleted or that CRIU finds no name for",
        "Take the watch away first; on the container's root filesystem any file that has a name "
        "may be watched.",
    ),
    _Known(
        r"BPF map type|Control messages in queue|PIDFD_THREAD|Unsupported (?:socket|link)"
        r"|Unknown socket|Unsupported proto",
        _NOT_POSSIBLE,
        "a process holds a kernel object that CRIU cannot dump",
        "See the lines below for which.",
    ),
    _Known(
        r"vDSO area bounds",
        reasons.RUNTIME_FAILED,
        "this CRIU is too old for the node's kernel",
        "Install CRIU 4.2 or newer.",
    ),
    _Known(
        r"No mapping for .* mountpoint|proper root mount|Can't lookup mount|FS mnt .* unsupported",
        _NOT_POSSIBLE,
        "a mount inside the container is not listed in its specification",
        "Mount it through the container's specification (for NVIDIA: CDI mode, no legacy hook).",
    ),
    _Known(
        r"has bad (?:size|mode)|build-ID",
        _BY_PHASE,
        "a file that a process has open or mapped is not what it was at the checkpoint",
        "Restore with the same image and the same volumes as the container had.",
    ),
    _Known(
        r"Can't open file .* on restore|Can't open file",
        _BY_PHASE,
        "a file that a process had open is not there",
        "Restore with the same image and the same volumes as the container had.",
    ),
    _Known(
        r"Can't bind inet socket",
        _BY_PHASE,
        "an address or a port that the container listened on is not free on this node",
        "End what uses the port, or restore into a network with that address.",
    ),
    _Known(
        r"Can't connect inet socket back",
        _BY_PHASE,
        "a connected socket's peer cannot be reached from the new network",
        "Restore into a network that reaches it.",
    ),
    _Known(
        r"Can't fork for \d+.*File exists|Pid \d+ .*(?:used|busy)",
        _BY_PHASE,
        "a process id of the container is taken",
        "Restore into a container with a PID namespace of its own.",
    ),
    _Known(
        r"CPU (?:capabilities|instruction|features?|xfeatures|xsave)|(?:cpu:|xsave).*mismatch",
        reasons.HOST_MISFIT,
        "this node's CPU lacks features that the processes were started with",
        "Restore on a node with the same or a newer CPU model.",
    ),
    _Known(
        r"Not supported images version|Images corrupted",
        _BY_PHASE,
        "this CRIU cannot read the images",
        "Restore with the CRIU version that made them, or a newer one.",
    ),
    _Known(
        r"iptables|nftables|Can't lock network|Network is locked",
        reasons.RUNTIME_FAILED,
        "CRIU cannot lock the container's network on this node",
        "Install iptables or nftables, or set network-lock skip in runc's CRIU options.",
    ),
)


def read_log(folder: Path, name: str = DUMP_LOG) -> str:
    """The last part of a log; empty when there is none, for CRIU may not have come so far."""
    try:
        with (folder / name).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def explain(log: str, *, otherwise: str) -> Cause:
    """The cause that the log tells; `otherwise` is the reason when the table knows none of it."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    last = tuple(lines[-LAST_LINES:])
    errors = [text for line in lines if (text := _error_text(line)) and not _NOISE.search(text)]
    for error in errors:
        for known in _KNOWN:
            if re.search(known.pattern, error, re.IGNORECASE):
                message = f"{known.message} ({error})"
                reason = known.reason or otherwise
                return Cause(
                    reason=reason,
                    message=message,
                    advice=known.advice,
                    lines=last,
                    passes=known.passes,
                )
    return _unknown(errors, last, otherwise)


def _unknown(errors: list[str], last: tuple[str, ...], otherwise: str) -> Cause:
    if not last:
        message = "CRIU left no log: it was not started or ended before it could write one"
        advice = "See that CRIU is installed and that `criu check` passes on the node."
    elif not errors:
        message = "CRIU ended without naming an error in its log"
        advice = "See whether it was killed (memory limit, time limit)."
    else:
        message = f"CRIU: {errors[0]}"
        advice = "The lines below are the end of CRIU's log."
    return Cause(reason=otherwise, message=message, advice=advice, lines=last)


def _error_text(line: str) -> str:
    found = _ERROR.match(line)
    return found["text"].strip() if found else ""
