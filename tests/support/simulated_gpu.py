"""GPUs that are not there: workloads that are real processes, and a driver that holds them.

A workload is any process with `KYBERNATE_SIMULATED_GPU=FOLDER` in its environment and a folder
FOLDER/PID (its own number, as seen inside its container). In there:

    state       what the driver says: running, locked, checkpointed, failed
    vram-UUID   its memory on that GPU; saved-UUID while it is checkpointed
    busy        seconds since the epoch until which its kernel runs
    ipc         it shares GPU memory: its checkpoint cannot be restored

The workload obeys: it works only while it is running. The folder is inside the container, so a
checkpoint of the process carries it, as a real process carries its saved GPU memory. The GPUs
and the faults that are wanted stand in the driver's own folder, so all of it survives helpers.

`python -m tests.support.simulated_gpu FOLDER UUID=BYTES…` is such a workload.
"""

import contextlib
import hashlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from node_worker import freezer
from node_worker.gpu.port import DriverError, GpuState
from schemas.gpus import GpuFacts, GpuProcess

MARK = "KYBERNATE_SIMULATED_GPU"
GPUS = "gpus.json"
FAULTS = "faults"

Kind = Literal["hang", "error", "slow", "die"]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong in a call, once."""

    kind: Kind
    code: str = "CUDA_ERROR_UNKNOWN"
    seconds: float = 0.0


class SimulatedGpus:
    """The tests' hand on the simulated GPUs of one node."""

    module = __name__

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / FAULTS).mkdir(parents=True, exist_ok=True)
        self.show(())

    def show(self, gpus: Sequence[GpuFacts]) -> None:
        _write(self.folder / GPUS, msgspec.json.encode(gpus))

    def fault(self, call: str, pid: int | None, fault: Fault) -> None:
        """Let the next such call go wrong, for the process or, with None, for any.

        `checkpoint-after` goes wrong once the work is done.
        """
        _write(self.folder / FAULTS / f"{call}-{pid or 'any'}", msgspec.json.encode(fault))

    def calls(self) -> list[str]:
        """The steps that the driver was asked for, as `lock 123`."""
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []


def gpu(index: int = 0, **changes: object) -> GpuFacts:
    facts = GpuFacts(
        index=index,
        uuid=f"GPU-00000000-0000-4000-8000-{index:012d}",
        model="Simulated 100",
        memory_bytes=1 << 34,
        driver="580.159.04",
    )
    return msgspec.structs.replace(facts, **changes)


def open_driver(argument: str) -> "SimulatedDriver":
    return SimulatedDriver(Path(argument))


class SimulatedDriver:
    """A `Driver` with the states, time-outs and errors that were measured on the real one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def absence(self) -> str:
        return "" if self.facts() else "no simulated GPU is plugged in"

    def facts(self) -> tuple[GpuFacts, ...]:
        self._meet_fault("facts", None)
        return msgspec.json.decode((self._folder / GPUS).read_bytes(), type=tuple[GpuFacts, ...])

    def processes(self, pids: Sequence[int]) -> tuple[GpuProcess, ...]:
        found = []
        for pid in pids:
            with contextlib.suppress(DriverError):  # no CUDA there
                found.append(GpuProcess(pid=pid, usage=_usage(_home(pid))))
        return tuple(found)

    def state(self, pid: int) -> GpuState:
        self._meet_fault("state", pid)
        home = _home(pid)
        while _stands_still(pid):
            time.sleep(0.02)
        return _state(home)

    def lock(self, pid: int, timeout: float) -> None:
        home = self._begin("lock", pid, GpuState.RUNNING)
        end = time.monotonic() + timeout
        while _busy(home):
            if time.monotonic() >= end:
                raise DriverError("CUDA_ERROR_NOT_READY")
            time.sleep(0.005)
        self._end("lock", pid, GpuState.LOCKED)

    def checkpoint(self, pid: int) -> None:
        home = self._begin("checkpoint", pid, GpuState.LOCKED)
        for memory in home.glob("vram-*"):
            memory.rename(home / memory.name.replace("vram-", "saved-"))
        self._end("checkpoint", pid, GpuState.CHECKPOINTED)

    def restore(self, pid: int, pairs: Mapping[str, str] | None) -> None:
        home = self._begin("restore", pid, GpuState.CHECKPOINTED)
        here = {facts.uuid: facts.model for facts in self.facts()}
        saved = {path.name.removeprefix("saved-"): path for path in home.glob("saved-*")}
        targets = {old: (pairs or {}).get(old, "" if pairs else old) for old in saved}
        if (home / "ipc").exists() or not set(targets.values()) <= here.keys():
            raise DriverError("CUDA_ERROR_INVALID_VALUE")
        for old, path in saved.items():
            path.rename(home / f"vram-{targets[old]}")
        self._end("restore", pid, GpuState.LOCKED)

    def unlock(self, pid: int) -> None:
        self._begin("unlock", pid, GpuState.LOCKED)
        self._end("unlock", pid, GpuState.RUNNING)

    def _begin(self, call: str, pid: int, needed: GpuState) -> Path:
        with (self._folder / "calls").open("a") as log:
            log.write(f"{call} {pid}\n")
        self._meet_fault(call, pid)
        home = _home(pid)
        if _state(home) is not needed:
            raise DriverError("CUDA_ERROR_ILLEGAL_STATE")
        return home

    def _end(self, call: str, pid: int, reached: GpuState) -> None:
        _write(_home(pid) / "state", reached.encode())
        self._meet_fault(f"{call}-after", pid)

    def _meet_fault(self, call: str, pid: int | None) -> None:
        for who in (pid, "any"):
            path = self._folder / FAULTS / f"{call}-{who}"
            with contextlib.suppress(FileNotFoundError):
                fault = msgspec.json.decode(path.read_bytes(), type=Fault)
                path.unlink()
                _suffer(fault)


def _suffer(fault: Fault) -> None:
    match fault.kind:
        case "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            time.sleep(3600)
        case "slow":
            time.sleep(fault.seconds)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "error":
            raise DriverError(fault.code)


def _home(pid: int) -> Path:
    """The process's folder, as seen from here; the driver's errors where there is none."""
    process = Path("/proc") / str(pid)
    try:
        status = (process / "status").read_text()
        environment = (process / "environ").read_bytes().split(b"\0")
    except OSError as error:
        raise DriverError("CUDA_ERROR_OPERATING_SYSTEM") from error
    lines = dict(line.split(":", 1) for line in status.splitlines())
    if lines["State"].split()[0] in {"Z", "X"}:
        raise DriverError("CUDA_ERROR_OPERATING_SYSTEM")
    inner = lines["NSpid"].split()[-1]
    for entry in environment:
        name, _, folder = entry.decode(errors="replace").partition("=")
        home = process / "root" / folder.lstrip("/") / inner
        if name == MARK and home.is_dir():
            return home
    raise DriverError("CUDA_ERROR_NOT_INITIALIZED")


def _stands_still(pid: int) -> bool:
    """Stopped or frozen: the process itself answers the driver, so the driver waits for it."""
    with contextlib.suppress(FileNotFoundError):  # it has ended, or no cgroup freezes it
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T" or freezer.is_frozen(pid)
    return False


def _state(home: Path) -> GpuState:
    return GpuState((home / "state").read_text().strip())


def _usage(home: Path) -> dict[str, int]:
    return {path.name.removeprefix("vram-"): path.stat().st_size for path in home.glob("vram-*")}


def _busy(home: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return time.time() < float((home / "busy").read_text() or 0)
    return False


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(data)
    draft.replace(path)


def work(folder: Path, memory: Mapping[str, int]) -> None:
    """Fill the memory, then count; each count needs the GPU and tells a digest of its data."""
    home = folder / str(os.getpid())
    home.mkdir(parents=True)
    for uuid, size in memory.items():
        (home / f"vram-{uuid}").write_bytes(os.urandom(size))
    _write(home / "state", GpuState.RUNNING.encode())
    for loop in range(1, sys.maxsize):
        while _state(home) is not GpuState.RUNNING:
            time.sleep(0.005)
        digest = _digest(home)
        if _state(home) is GpuState.RUNNING:  # else it may have looked at half of it
            _write(home / "progress", f"Loop {loop}: {digest}\n".encode())
        time.sleep(0.01)


def _digest(home: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(home.glob("vram-*")):
        with contextlib.suppress(FileNotFoundError):  # taken off the GPU between two looks
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    folder, *memory = sys.argv[1:]
    sizes = (entry.partition("=") for entry in memory)
    work(Path(folder), {uuid: int(size) for uuid, _, size in sizes})


if __name__ == "__main__":
    main()
