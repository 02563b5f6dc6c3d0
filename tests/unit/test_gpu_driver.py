"""How the CUDA driver is called, shown on a stand-in for its bindings."""

import ctypes
import enum
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from node_worker.gpu import host, vram
from node_worker.gpu.driver import CudaDriver, open_driver
from node_worker.gpu.port import DriverError, GpuState
from schemas.gpus import GpuFacts, GpuProcess

A, B = (f"GPU-{digit * 8}-{digit * 4}-4{digit * 3}-8{digit * 3}-{digit * 12}" for digit in "ab")
ZERO = "GPU-00000000-0000-0000-0000-000000000000"
"""The one that the stand-in has."""


class Result(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_NOT_READY = 600


class Plain:
    """Stands for every struct of the bindings."""


class Uuid:
    def __init__(self) -> None:
        self._raw = (ctypes.c_char * 16)()

    def getPtr(self) -> int:  # noqa: N802 - the bindings' name
        return ctypes.addressof(self._raw)

    @property
    def bytes(self) -> bytes:
        return bytes(self._raw.raw)


class Bindings(ModuleType):
    """`cuda.bindings.driver` with the calls of driver 580 that Kybernate makes."""

    CUresult = Result
    CUcheckpointLockArgs = CUcheckpointRestoreArgs = CUcheckpointGpuPair = Plain
    CUuuid = Uuid

    def __init__(self) -> None:
        super().__init__("cuda.bindings.driver")
        self.calls: list[tuple[Any, ...]] = []
        self.starts = Result.CUDA_SUCCESS
        self.answers: list[Result] = []

    def cuInit(self, _flags: int) -> tuple[Result]:  # noqa: N802
        return (self.starts,)

    def cuCheckpointProcessGetState(self, pid: int) -> tuple[Result, int]:  # noqa: N802
        return self._result("state", pid), 2

    def cuCheckpointProcessLock(self, pid: int, arguments: Any) -> tuple[Result]:  # noqa: N802
        return (self._result("lock", pid, arguments.timeoutMs),)

    def cuCheckpointProcessRestore(self, pid: int, arguments: Any) -> tuple[Result]:  # noqa: N802
        pairs = arguments and [
            (pair.oldUuid.bytes.hex()[0], pair.newUuid.bytes.hex()[0])
            for pair in arguments.gpuPairs
        ]
        assert not arguments or arguments.gpuPairsCount == len(pairs)
        return (self._result("restore", pid, pairs),)

    def cuDeviceGetCount(self) -> tuple[Result, int]:  # noqa: N802
        return Result.CUDA_SUCCESS, 1

    def cuDeviceGet(self, index: int) -> tuple[Result, int]:  # noqa: N802
        return Result.CUDA_SUCCESS, index

    def cuDeviceGetName(self, _size: int, _device: int) -> tuple[Result, bytes]:  # noqa: N802
        return Result.CUDA_SUCCESS, b"NVIDIA H200\0\0"

    def cuDeviceGetPCIBusId(self, _size: int, _device: int) -> tuple[Result, bytes]:  # noqa: N802
        return Result.CUDA_SUCCESS, b"0000:00:05.0\0"

    def cuDeviceGetUuid(self, _device: int) -> tuple[Result, Uuid]:  # noqa: N802
        return Result.CUDA_SUCCESS, Uuid()

    def cuDeviceTotalMem(self, _device: int) -> tuple[Result, int]:  # noqa: N802
        return Result.CUDA_SUCCESS, 141 << 30

    def _result(self, *call: Any) -> Result:
        self.calls.append(call)
        return self.answers.pop(0) if self.answers else Result.CUDA_SUCCESS


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bindings]:
    bindings = Bindings()
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", bindings)
    monkeypatch.setattr(host, "gpu_uuids", lambda: (A, B))
    monkeypatch.setattr(host, "driver_version", lambda: "580.159.04")
    yield bindings
    assert not bindings.answers


def test_describes_a_gpu(bindings: Bindings) -> None:
    assert CudaDriver().facts() == (
        GpuFacts(
            index=0,
            uuid=ZERO,
            model="NVIDIA H200",
            memory_bytes=141 << 30,
            driver="580.159.04",
        ),
    )
    assert not bindings.calls


@pytest.mark.parametrize(("argument", "seen"), [("", 1), (f"{A},{ZERO}", 1), (A, 0)])
def test_a_worker_may_look_after_some_gpus_only(
    bindings: Bindings, argument: str, seen: int
) -> None:
    assert len(open_driver(argument).facts()) == seen
    assert not bindings.calls


def test_without_bindings_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)

    assert CudaDriver().facts() == ()
    assert "cuda-bindings" in CudaDriver().absence()


def test_a_driver_that_does_not_start_is_told(bindings: Bindings) -> None:
    bindings.starts = Result.CUDA_ERROR_NO_DEVICE
    driver = CudaDriver()

    assert driver.facts() == ()
    assert "CUDA_ERROR_NO_DEVICE" in driver.absence()
    with pytest.raises(DriverError, match="NO_DEVICE"):
        driver.state(1)


def test_a_driver_that_is_not_installed_is_told(
    bindings: Bindings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_flags: int) -> None:
        raise RuntimeError("libcuda.so.1 not found")

    monkeypatch.setattr(bindings, "cuInit", missing)

    assert "libcuda" in CudaDriver().absence()


def test_a_driver_before_the_checkpoint_calls_does_not_support_them(bindings: Bindings) -> None:
    with pytest.raises(DriverError, match="NOT_SUPPORTED"):
        CudaDriver().unlock(1)
    assert not bindings.calls


def test_reads_states(bindings: Bindings) -> None:
    assert CudaDriver().state(7) is GpuState.CHECKPOINTED
    assert bindings.calls == [("state", 7)]


def test_a_lock_never_waits_for_ever(bindings: Bindings) -> None:
    driver = CudaDriver()

    driver.lock(7, 1.5)
    driver.lock(7, 0.0)

    assert bindings.calls == [("lock", 7, 1500), ("lock", 7, 1)]


def test_an_error_carries_its_name(bindings: Bindings) -> None:
    bindings.answers = [Result.CUDA_ERROR_NOT_READY]

    with pytest.raises(DriverError) as caught:
        CudaDriver().lock(7, 1.0)

    assert caught.value.code == "CUDA_ERROR_NOT_READY"


def test_a_restore_on_the_same_gpus_names_none(bindings: Bindings) -> None:
    CudaDriver().restore(7, None)

    assert bindings.calls == [("restore", 7, None)]


def test_a_move_names_all_gpus_of_the_host(bindings: Bindings) -> None:
    CudaDriver().restore(7, {A: B})

    assert bindings.calls == [("restore", 7, [("a", "b"), ("b", "a")])]


def test_a_move_that_is_refused_so_is_tried_as_given(bindings: Bindings) -> None:
    bindings.answers = [Result.CUDA_ERROR_INVALID_VALUE, Result.CUDA_SUCCESS]

    CudaDriver().restore(7, {A: B})

    assert bindings.calls[1] == ("restore", 7, [("a", "b")])


def test_a_restore_that_fails_otherwise_is_not_tried_again(bindings: Bindings) -> None:
    bindings.answers = [Result.CUDA_ERROR_NOT_READY]

    with pytest.raises(DriverError):
        CudaDriver().restore(7, {A: B})

    assert len(bindings.calls) == 1


def test_processes_are_those_with_the_library_and_a_state(
    bindings: Bindings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "has_cuda_library", lambda pid: pid != 1)
    monkeypatch.setattr(vram, "usage", lambda: {3: {A: 5}})
    bindings.answers = [Result.CUDA_ERROR_NOT_INITIALIZED, Result.CUDA_SUCCESS]

    assert CudaDriver().processes([1, 2, 3]) == (GpuProcess(pid=3, usage={A: 5}),)
