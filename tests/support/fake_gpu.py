"""GPUs for tests of the worker's steps: states in memory, by the port's rules, and faults."""

from collections.abc import Mapping, Sequence

from node_worker.gpu.port import TRANSFER_TIMEOUT, GpuFailed, GpuProblem, GpuState, NotCuda
from schemas.gpus import GpuFacts, GpuProcess

UUID = "GPU-00000000-0000-4000-8000-000000000000"
OTHER_UUID = "GPU-00000000-0000-4000-8000-000000000001"


def facts(uuid: str = UUID) -> GpuFacts:
    return GpuFacts(index=0, uuid=uuid, model="Twin 100", memory_bytes=1 << 34, driver="580.159.04")


class FakeGpu:
    def __init__(self) -> None:
        self.gpus: tuple[GpuFacts, ...] = ()
        self.states: dict[int, GpuState] = {}
        self.usage: dict[int, dict[str, int]] = {}
        self.faults: dict[str, list[GpuProblem]] = {}

    def add(self, pid: int, state: GpuState = GpuState.RUNNING, size: int = 1 << 20) -> None:
        self.states[pid] = state
        self.usage[pid] = {self.gpus[0].uuid: size}

    def fail(self, call: str, problem: GpuProblem) -> None:
        """The next such call fails, and changes nothing."""
        self.faults.setdefault(call, []).append(problem)

    async def facts(self) -> tuple[GpuFacts, ...]:
        return self.gpus

    async def absence(self) -> str:
        return "" if self.gpus else "no GPU is plugged in"

    async def processes(self, pids: Sequence[int]) -> tuple[GpuProcess, ...]:
        found = [pid for pid in pids if pid in self.states]
        return tuple(GpuProcess(pid=pid, usage=self.usage[pid]) for pid in found)

    async def state(self, pid: int) -> GpuState:
        self._meet_fault("state")
        if pid not in self.states:
            raise NotCuda(f"process {pid}")
        return self.states[pid]

    async def lock(self, pid: int, timeout: float) -> None:
        self._move("lock", pid, GpuState.RUNNING, GpuState.LOCKED)

    async def checkpoint(self, pid: int, *, timeout: float = TRANSFER_TIMEOUT) -> None:
        self._move("checkpoint", pid, GpuState.LOCKED, GpuState.CHECKPOINTED)

    async def restore(
        self,
        pid: int,
        pairs: Mapping[str, str] | None = None,
        *,
        timeout: float = TRANSFER_TIMEOUT,
    ) -> None:
        self._move("restore", pid, GpuState.CHECKPOINTED, GpuState.LOCKED)

    async def unlock(self, pid: int) -> None:
        self._move("unlock", pid, GpuState.LOCKED, GpuState.RUNNING)

    def _move(self, call: str, pid: int, before: GpuState, after: GpuState) -> None:
        self._meet_fault(call)
        if self.states.get(pid) is not before:
            raise GpuFailed(f"{call} of process {pid} in {self.states.get(pid)}", code="STATE")
        self.states[pid] = after

    def _meet_fault(self, call: str) -> None:
        if faults := self.faults.get(call):
            raise faults.pop(0)
