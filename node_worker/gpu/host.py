"""What the kernel says about GPUs and the processes that use them: /proc/driver/nvidia, /proc/PID.

Everything here also answers where there is no driver, no such process, or no right to look.
"""

import re
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia")
PROC = Path("/proc")
MEMINFO = Path("/proc/meminfo")

DRIVER_RANGE_END = 1 << 40

_VERSION = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")
_UUID = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-f-]{36})\s*$", re.MULTILINE)
_MINOR = re.compile(r"^Device Minor:\s*(\d+)\s*$", re.MULTILINE)
_CUDA_LIBRARY = "/libcuda.so."
_UVM = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .{3}s .* /dev/nvidia-uvm$", re.MULTILINE)


def read(path: Path) -> str:
    """The file's text; empty where it cannot be read, because its owner may be gone."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def driver_version(driver: Path = DRIVER) -> str:
    """`580.159.04`, or nothing where no NVIDIA kernel module is loaded."""
    found = _VERSION.search(read(driver / "version"))
    return found[1] if found else ""


def gpu_uuids(driver: Path = DRIVER) -> tuple[str, ...]:
    """Every GPU of the host, also those that this process is not shown."""
    files = sorted(driver.glob("gpus/*/information"))
    return tuple(found[1] for file in files if (found := _UUID.search(read(file))))


def mig_enabled(bus: str, driver: Path = DRIVER) -> bool:
    """Whether the GPU at that PCI address is cut into MIG instances."""
    found = _MINOR.search(read(driver / "gpus" / bus.lower() / "information"))
    return bool(found and any(driver.glob(f"capabilities/gpu{found[1]}/mig/gi*")))


def has_cuda_library(pid: int, proc: Path = PROC) -> bool:
    """Whether the process has the driver's library mapped: without it, there is no CUDA."""
    return _CUDA_LIBRARY in read(proc / str(pid) / "maps")


def managed_bytes(maps: str) -> int:
    """How much of the address space looks like managed memory.

    Every CUDA process has a few windows of its own on the unified memory device, in the driver's
    range at the bottom of the address space. Managed memory is mapped where other memory is.
    """
    found = ((int(start, 16), int(end, 16)) for start, end in _UVM.findall(maps))
    return sum(end - start for start, end in found if start >= DRIVER_RANGE_END)


def managed_bytes_of(pid: int, proc: Path = PROC) -> int:
    return managed_bytes(read(proc / str(pid) / "maps"))


def available_bytes(meminfo: Path = MEMINFO) -> int:
    """Host memory that could be had without swapping."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", read(meminfo), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
