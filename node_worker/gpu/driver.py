"""The CUDA driver, called for other processes: the only module that imports `cuda`.

Runs in the helper process. Where the bindings or the driver are missing it answers "no GPU" and
says why. The driver is loaded with the first call and stays loaded: that keeps the GPUs awake
and makes every later call cheap.
"""

import contextlib
import ctypes
import importlib
import threading
import uuid
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

from node_worker.gpu import host, vram
from node_worker.gpu.pairing import mappings_to_try
from node_worker.gpu.port import Driver, DriverError, GpuState
from schemas.gpus import GpuFacts, GpuProcess

NOT_SUPPORTED = "CUDA_ERROR_NOT_SUPPORTED"
NOT_INITIALIZED = "CUDA_ERROR_NOT_INITIALIZED"
INVALID_VALUE = "CUDA_ERROR_INVALID_VALUE"
OPERATING_SYSTEM = "CUDA_ERROR_OPERATING_SYSTEM"
NO_CUDA = frozenset({NOT_INITIALIZED, OPERATING_SYSTEM})

STATES = {
    0: GpuState.RUNNING,
    1: GpuState.LOCKED,
    2: GpuState.CHECKPOINTED,
    3: GpuState.FAILED,
    4: GpuState.CHECKPOINTING,
    5: GpuState.RESTORING,
}


def open_driver(argument: str) -> Driver:
    """`argument`: the UUIDs of the GPUs to be seen, with commas between; empty: all."""
    return CudaDriver(tuple(filter(None, argument.split(","))))


class CudaDriver:
    """`cuda.bindings.driver` as the port names it."""

    def __init__(self, chosen: Collection[str] = ()) -> None:
        self._chosen = chosen
        self._loading = threading.Lock()
        self._loaded: ModuleType | None = None
        self._absence: str | None = None

    def absence(self) -> str:
        with self._loading:
            if self._absence is None:
                self._absence = self._load()
            return self._absence

    def facts(self) -> tuple[GpuFacts, ...]:
        if self.absence():
            return ()
        version = host.driver_version()
        count = self._call("cuDeviceGetCount")
        found = (self._fact(index, version) for index in range(count))
        return tuple(gpu for gpu in found if not self._chosen or gpu.uuid in self._chosen)

    def processes(self, pids: Sequence[int]) -> tuple[GpuProcess, ...]:
        candidates = [pid for pid in pids if host.has_cuda_library(pid)]
        if not candidates or self.absence():
            return ()
        usage = vram.usage()
        return tuple(
            GpuProcess(pid=pid, usage=usage.get(pid, {})) for pid in candidates if self._uses(pid)
        )

    def state(self, pid: int) -> GpuState:
        return STATES[int(self._call("cuCheckpointProcessGetState", pid))]

    def lock(self, pid: int, timeout: float) -> None:
        arguments = self._cuda.CUcheckpointLockArgs()
        arguments.timeoutMs = max(1, int(timeout * 1000))  # 0 would wait for ever
        self._call("cuCheckpointProcessLock", pid, arguments)

    def checkpoint(self, pid: int) -> None:
        self._call("cuCheckpointProcessCheckpoint", pid, None)

    def restore(self, pid: int, pairs: Mapping[str, str] | None) -> None:
        if not pairs:
            self._call("cuCheckpointProcessRestore", pid, None)
            return
        first, *others = mappings_to_try(pairs, host.gpu_uuids())
        try:
            self._call("cuCheckpointProcessRestore", pid, self._restore_arguments(first))
        except DriverError as error:
            if error.code != INVALID_VALUE or not others:
                raise
            self._call("cuCheckpointProcessRestore", pid, self._restore_arguments(others[0]))

    def unlock(self, pid: int) -> None:
        self._call("cuCheckpointProcessUnlock", pid, None)

    def _load(self) -> str:
        """Load and initialise the driver; the reason where that is impossible."""
        try:
            cuda = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            return f"the Python package cuda-bindings is not installed ({error})"
        try:
            (result,) = cuda.cuInit(0)
        except RuntimeError as error:
            return f"there is no CUDA driver: {error}"
        if result != cuda.CUresult.CUDA_SUCCESS:
            return f"the CUDA driver does not start: {result.name}"
        self._loaded = cuda
        return ""

    @property
    def _cuda(self) -> Any:
        if self.absence():
            raise DriverError("CUDA_ERROR_NO_DEVICE")
        return self._loaded

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the driver; its one value, where it has one besides the result."""
        cuda = self._cuda
        try:
            result, *values = getattr(cuda, name)(*arguments)
        except (AttributeError, RuntimeError) as error:  # a driver or bindings before that call
            raise DriverError(NOT_SUPPORTED) from error
        if result != cuda.CUresult.CUDA_SUCCESS:
            raise DriverError(result.name)
        return values[0] if values else None

    def _fact(self, index: int, version: str) -> GpuFacts:
        device = self._call("cuDeviceGet", index)
        name = self._call("cuDeviceGetName", 256, device).partition(b"\0")[0].decode()
        bus = self._call("cuDeviceGetPCIBusId", 32, device).partition(b"\0")[0].decode()
        return GpuFacts(
            index=index,
            uuid=f"GPU-{uuid.UUID(bytes=bytes(self._call('cuDeviceGetUuid', device).bytes))}",
            model=name,
            memory_bytes=int(self._call("cuDeviceTotalMem", device)),
            driver=version,
            mig=" MIG " in name or host.mig_enabled(bus),
        )

    def _uses(self, pid: int) -> bool:
        """Whether the driver knows the process; one that it cannot judge counts."""
        try:
            self.state(pid)
        except DriverError as error:
            return error.code not in NO_CUDA
        return True

    def _restore_arguments(self, pairs: Mapping[str, str]) -> Any:
        arguments = self._cuda.CUcheckpointRestoreArgs()
        arguments.gpuPairs = [self._pair(old, new) for old, new in pairs.items()]
        arguments.gpuPairsCount = len(pairs)
        return arguments

    def _pair(self, old: str, new: str) -> Any:
        pair = self._cuda.CUcheckpointGpuPair()
        pair.oldUuid = self._uuid(old)
        pair.newUuid = self._uuid(new)
        return pair

    def _uuid(self, text: str) -> Any:
        value = self._cuda.CUuuid()
        with contextlib.suppress(ValueError):  # a name that is no UUID matches no GPU
            raw = uuid.UUID(text.removeprefix("GPU-")).bytes
            ctypes.memmove(value.getPtr(), raw, len(raw))
        return value
