"""Real and simulated GPUs of a whole node: what its worker is told, containers that use them."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from kybernate.embedded.counting import Counter, gpu_counter
from node_worker.gpu import vram
from node_worker.gpu.helper import CUDA_DRIVER
from tests.support import simulated_gpu
from tests.support.simulated_container import HOME, simulated_counter
from tests.support.simulated_gpu import SimulatedGpus


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs of one node, as its worker's settings name them."""

    driver: str
    argument: str


class SimulatedKind:
    """One GPU that is not there."""

    gib = 1 / 1024

    def __init__(self, folder: Path) -> None:
        plugged = SimulatedGpus(folder)
        plugged.show([simulated_gpu.gpu()])
        self.gpus = Gpus(driver=plugged.module, argument=str(folder))

    def counter(self) -> Counter:
        """A container that holds so many GiB of GPU memory."""
        size = int(self.gib * (1 << 30))
        return Counter(workload=simulated_counter({simulated_gpu.gpu().uuid: size}))

    def in_use(self, pids: Iterable[int]) -> int:
        """Bytes of GPU memory: of containers with these processes, and of all others as well
        where the GPU can tell."""
        homes = (Path(f"/proc/{pid}/root{HOME}") for pid in pids)
        return sum(path.stat().st_size for home in homes for path in home.glob("*/vram-*"))


class RealKind(SimulatedKind):
    """The NVIDIA GPUs of this machine; containers use the first."""

    gib = 1.0

    def __init__(self, _folder: Path) -> None:
        self.gpus = Gpus(driver=CUDA_DRIVER, argument="")

    def counter(self) -> Counter:
        counter = gpu_counter()
        args = (*counter.workload.args, "--gib", f"{self.gib:g}", "--gpus", "1")
        return msgspec.structs.replace(
            counter, workload=msgspec.structs.replace(counter.workload, args=args)
        )

    def in_use(self, _pids: Iterable[int]) -> int:
        return sum(sum(held.values()) for held in vram.usage().values())
