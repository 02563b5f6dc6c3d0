"""Why the GPU state of containers cannot be checkpointed or restored here, found beforehand. Pure.

Each obstacle says what is wrong and what to do. What cannot be seen from outside (a buffer shared
over CUDA IPC, managed memory that was never mapped) is refused by rule or left to the driver.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from node_worker.gpu.evidence import Evidence
from node_worker.gpu.port import GpuState
from schemas import reasons
from schemas.failures import Failure
from schemas.gpus import GpuFacts, GpuProcess

CHECKPOINT_DRIVER = 570
"""The first driver whose library has the checkpoint calls."""
REMAP_DRIVER = 580
"""The first driver that restores onto other GPUs."""
MANAGED_ALLOWANCE = 32 * 1024 * 1024
"""Below this, mapped unified memory may be the driver's own."""
MEMORY_MARGIN = 256 * 1024 * 1024


def checkpoint_obstacles(evidence: Evidence, *, independent: bool) -> tuple[Failure, ...]:
    """`independent`: the order says that its GPU processes share no memory with each other."""
    if not evidence.processes:
        return ()
    return (
        *node_obstacles(evidence.gpus),
        *_states(evidence.states),
        *_managed(evidence.managed),
        *_shared(evidence, independent=independent),
        *_memory(evidence),
    )


def restore_obstacles(
    then: Sequence[GpuFacts], now: Sequence[GpuFacts], pairs: Mapping[str, str]
) -> tuple[Failure, ...]:
    """`pairs` as `pairing.pair` made them."""
    if not then:
        return ()
    moved = any(old != new for old, new in pairs.items())
    return (
        *_driver(now, CHECKPOINT_DRIVER, "restore a process"),
        *(_driver(now, REMAP_DRIVER, "restore onto another GPU") if moved else ()),
        *_same_driver(then, now),
        *_mig(now),
    )


def node_obstacles(gpus: Sequence[GpuFacts]) -> tuple[Failure, ...]:
    """Why none of the node's GPU processes can be checkpointed, whatever they do."""
    return (*_driver(gpus, CHECKPOINT_DRIVER, "checkpoint a process"), *_mig(gpus))


def vram_bytes(processes: Sequence[GpuProcess]) -> int:
    """The GPU memory that would move to the host, as far as it is known."""
    return sum(sum(process.usage.values()) for process in processes)


def _driver(gpus: Sequence[GpuFacts], least: int, purpose: str) -> Iterator[Failure]:
    for version in sorted({gpu.driver for gpu in gpus}):
        number = re.match(r"\d+", version)
        if number and int(number[0]) < least:
            yield Failure(
                reason=reasons.GPU_DRIVER_TOO_OLD,
                message=f"the NVIDIA driver {version} cannot {purpose}: {least} is the first",
                advice=f"Update the node's NVIDIA driver to {least} or newer.",
            )


def _same_driver(then: Sequence[GpuFacts], now: Sequence[GpuFacts]) -> Iterator[Failure]:
    before, here = {gpu.driver for gpu in then}, {gpu.driver for gpu in now}
    if here and before and before != here:
        yield Failure(
            reason=reasons.GPU_MISFIT,
            message=(
                f"the checkpoint was made with the NVIDIA driver {', '.join(sorted(before))}, "
                f"this node has {', '.join(sorted(here))}: the driver's library is part of the "
                "process, and works only with the kernel module of its own version"
            ),
            advice="Restore on a node with the same driver version.",
        )


def _mig(gpus: Sequence[GpuFacts]) -> Iterator[Failure]:
    cut = [gpu.uuid for gpu in gpus if gpu.mig]
    if cut:
        yield Failure(
            reason=reasons.GPU_UNSUPPORTED,
            message=f"MIG is on for {', '.join(cut)}; the driver checkpoints only whole GPUs",
            advice="Run the workload on a GPU without MIG.",
        )


def _states(states: Mapping[int, GpuState]) -> Iterator[Failure]:
    for pid, state in states.items():
        if state is not GpuState.RUNNING:
            yield Failure(
                reason=reasons.GPU_FAILED,
                message=f"CUDA process {pid} is {state}, not running: somebody else holds it",
                advice="See who uses cuda-checkpoint on it, or end the process if it failed.",
            )


def _managed(managed: Mapping[int, int]) -> Iterator[Failure]:
    for pid, size in managed.items():
        if size > MANAGED_ALLOWANCE:
            yield Failure(
                reason=reasons.GPU_UNSUPPORTED,
                message=f"process {pid} has {size >> 20} MiB of managed (unified) memory mapped, "
                "which the driver cannot checkpoint",
                advice="Use device memory (cudaMalloc) instead of cudaMallocManaged.",
            )


def _shared(evidence: Evidence, *, independent: bool) -> Iterator[Failure]:
    if len(evidence.processes) > 1 and not independent:
        yield Failure(
            reason=reasons.GPU_SHARED_MEMORY,
            message=f"{len(evidence.processes)} processes use CUDA: if they share "
            "GPU memory (CUDA IPC, NCCL), the driver makes a checkpoint that it cannot restore, "
            "and nothing shows the sharing from outside",
            advice="If they share none, say so: --independent-gpu-processes, or "
            "spec.gpu.independentProcesses in a KybernateCheckpoint.",
        )


def _memory(evidence: Evidence) -> Iterator[Failure]:
    needed = vram_bytes(evidence.processes)
    if not needed:
        return
    tight = [room for room in evidence.rooms if room.left < room.needed + MEMORY_MARGIN]
    if evidence.available_bytes < needed + MEMORY_MARGIN:
        yield Failure(
            reason=reasons.NOT_ENOUGH_MEMORY,
            message=f"{needed >> 20} MiB of GPU memory do not fit into host memory: "
            f"{evidence.available_bytes >> 20} MiB are available",
            advice="Free host memory on the node, then try again.",
            retriable=True,
        )
    elif tight:
        room = min(tight, key=lambda room: room.left - room.needed)
        yield Failure(
            reason=reasons.NOT_ENOUGH_MEMORY,
            message=f"{room.needed >> 20} MiB of GPU memory do not fit below the container's "
            f"memory limit: it leaves {room.left >> 20} MiB, and the container would be killed",
            advice="Raise the container's memory limit by its GPU memory.",
        )
