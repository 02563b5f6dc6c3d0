"""What the preflight refuses before any GPU process is touched."""

import pytest

from node_worker.gpu.evidence import Evidence, Room
from node_worker.gpu.obstacles import (
    MANAGED_ALLOWANCE,
    checkpoint_obstacles,
    restore_obstacles,
    vram_bytes,
)
from node_worker.gpu.port import GpuState
from schemas import reasons
from schemas.gpus import GpuFacts, GpuProcess

GIB = 1 << 30


def gpu(uuid: str = "A", driver: str = "580.159.04", *, mig: bool = False) -> GpuFacts:
    return GpuFacts(
        index=0, uuid=uuid, model="NVIDIA H200", memory_bytes=141 * GIB, driver=driver, mig=mig
    )


def process(pid: int = 1, gib: int = 2) -> GpuProcess:
    return GpuProcess(pid=pid, usage={"A": gib * GIB})


def evidence(
    *processes: GpuProcess,
    gpus: tuple[GpuFacts, ...] = (gpu(),),
    states: dict[int, GpuState] | None = None,
    managed: dict[int, int] | None = None,
    available: int = 64 * GIB,
    rooms: tuple[Room, ...] = (),
) -> Evidence:
    return Evidence(
        gpus=gpus,
        processes=processes or (process(),),
        states=states or {1: GpuState.RUNNING},
        managed=managed or {},
        available_bytes=available,
        rooms=rooms,
    )


def test_an_ordinary_process_meets_no_obstacle() -> None:
    assert checkpoint_obstacles(evidence(managed={1: 4 << 20}), independent=False) == ()


def test_a_container_without_cuda_meets_none_whatever_the_node_has() -> None:
    without = Evidence(gpus=(gpu(driver="470.1", mig=True),), processes=())

    assert checkpoint_obstacles(without, independent=False) == ()


@pytest.mark.parametrize(
    ("found", "reason", "told"),
    [
        (evidence(gpus=(gpu(driver="565.57.01"),)), reasons.GPU_DRIVER_TOO_OLD, "565.57.01"),
        (evidence(gpus=(gpu(mig=True),)), reasons.GPU_UNSUPPORTED, "MIG"),
        (evidence(states={1: GpuState.LOCKED}), reasons.GPU_FAILED, "locked"),
        (evidence(states={1: GpuState.FAILED}), reasons.GPU_FAILED, "failed"),
        (evidence(managed={1: MANAGED_ALLOWANCE + 1}), reasons.GPU_UNSUPPORTED, "managed"),
        (evidence(process(1), process(2)), reasons.GPU_SHARED_MEMORY, "IPC"),
        (evidence(process(gib=20), available=19 * GIB), reasons.NOT_ENOUGH_MEMORY, "host"),
        (
            evidence(rooms=(Room(left=9 * GIB, needed=2 * GIB), Room(left=1 * GIB, needed=GIB))),
            reasons.NOT_ENOUGH_MEMORY,
            "limit: it leaves 1024 MiB",
        ),
    ],
    ids=["driver", "mig", "locked", "failed", "managed", "shared", "host memory", "limit"],
)
def test_each_obstacle_is_named_with_advice(found: Evidence, reason: str, told: str) -> None:
    (obstacle,) = checkpoint_obstacles(found, independent=False)

    assert obstacle.reason == reason
    assert told in obstacle.message
    assert obstacle.advice


def test_processes_that_share_nothing_are_taken_together() -> None:
    found = evidence(process(1), process(2))

    assert checkpoint_obstacles(found, independent=True) == ()
    assert vram_bytes(found.processes) == 4 * GIB


def test_unknown_usage_is_no_obstacle() -> None:
    found = evidence(GpuProcess(pid=1), available=0)

    assert checkpoint_obstacles(found, independent=False) == ()


def test_a_restore_on_the_same_gpus_meets_no_obstacle() -> None:
    assert restore_obstacles([gpu()], [gpu()], {}) == ()
    assert restore_obstacles([], [], {}) == ()


def test_another_gpu_needs_a_newer_driver_than_the_same_one() -> None:
    old, new = gpu("A", "570.86.10"), gpu("B", "570.86.10")

    assert restore_obstacles([old], [old], {}) == ()
    (obstacle,) = restore_obstacles([old], [new], {"A": "B"})
    assert obstacle.reason == reasons.GPU_DRIVER_TOO_OLD


def test_another_driver_version_is_refused() -> None:
    (obstacle,) = restore_obstacles([gpu()], [gpu(driver="580.200.01")], {})

    assert obstacle.reason == reasons.GPU_MISFIT
    assert "580.159.04" in obstacle.message
    assert "580.200.01" in obstacle.message
