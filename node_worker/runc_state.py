"""Clears away what lives on of a container that containerd has no task of any more.

A containerd that restarts in the middle of a restore drops the task, for it has no process yet,
and kills its shim; runc, and the processes that CRIU has made, live on. So do those of a CRIU
that was killed just before it had finished. Nobody would end them, and the next restore under
that name would be refused ("container with given ID already exists").
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from node_worker import freezer, protowire
from node_worker.containerd.port import Container
from node_worker.folders import unmount
from schemas.base import decoder

DEFAULT_ROOT: Final = Path("/run/containerd/runc")
END_SECONDS: Final = 10.0
PROC: Final = Path("/proc")

_ROOT_FIELD: Final = 7  # of containerd.runc.v1.Options
_SYSTEMD_COLONS: Final = 2
_START_FIELD: Final = 19  # of /proc/PID/stat, counted behind the name


class StillThere(Exception):
    """A process of a forgotten container does not end; it may hang in the kernel (state D)."""


class _State(msgspec.Struct):
    """As much of runc's state.json as matters here."""

    init_process_pid: int = 0
    init_process_start: int = 0


def clear(namespace: str, container: Container) -> None:
    """End its processes and remove runc's folder of it; only when containerd has no such task."""
    folder = _root(container) / namespace / container.id
    state = _read(folder / "state.json")
    end = time.monotonic() + END_SECONDS
    while left := {*_first_process(state), *_in_cgroup(container)}:
        if time.monotonic() > end:
            raise StillThere(f"processes {left} of container {container.id} do not end")
        for pid in left:
            _end(pid)
        time.sleep(0.01)
    if folder.is_dir():
        _remove(folder)


def _end(pid: int) -> None:
    with contextlib.suppress(OSError):  # it ended by itself
        os.kill(pid, signal.SIGKILL)
        freezer.thaw(pid)


def _root(container: Container) -> Path:
    options = container.runtime_options
    named = protowire.blob(protowire.decode(options.value), _ROOT_FIELD) if options else None
    return Path(named.decode()) if named else DEFAULT_ROOT


def _read(file: Path) -> _State:
    """Nothing where runc had not come so far, or was cut off while it wrote."""
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
        return decoder(_State).decode(file.read_bytes())
    return _State()


def _first_process(state: _State) -> Iterator[int]:
    if state.init_process_pid and _started(state.init_process_pid) == state.init_process_start:
        yield state.init_process_pid


def _in_cgroup(container: Container) -> Iterator[int]:
    """The living processes in the cgroup that the container's spec names, or below it."""
    if not (name := _cgroup(container)):
        return
    for process in PROC.iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            lines = (process / "cgroup").read_text().splitlines()
            inside = any(name in f"{line}/" for line in lines)
            if inside and _started(int(process.name)):
                yield int(process.name)


def _cgroup(container: Container) -> str:
    """As it stands in /proc: `/kubepods/pod1/c1/`, or systemd's `/runc-c1.scope/`."""
    path: str = (container.oci.get("linux") or {}).get("cgroupsPath") or ""
    if path.count(":") == _SYSTEMD_COLONS:
        _, prefix, name = path.split(":")
        return f"/{prefix}-{name}.scope/"
    return f"{path.rstrip('/')}/" if path.startswith("/") else ""


def _started(pid: int) -> int:
    """When the process was started, in the kernel's ticks; 0 when there is none, or a zombie."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in {"Z", "X"} else int(fields[_START_FIELD])


def _remove(folder: Path) -> None:
    """Without following mounts: `criu-root` in it may be the container's root filesystem."""
    for entry in folder.iterdir():
        if entry.is_dir():
            if entry.is_mount():
                unmount(entry)
            entry.rmdir()
        else:
            entry.unlink()
    folder.rmdir()
