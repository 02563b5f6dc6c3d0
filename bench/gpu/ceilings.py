"""What the machine itself can do, measured in the same run: nothing above can be faster.

    python -m bench.gpu.ceilings

prints the rates of copies between GPU and pinned host memory; it is a process of its own, so
that its CUDA context is gone before anything else is measured.
"""

import asyncio
import ctypes
import errno
import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

COPIED = 1 << 30
BLOCK = 64 << 20
REPEATS = 5
COPY_SECONDS = 300.0
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Rates = dict[str, float]
"""Bytes per second."""


async def measure(disk: Path, *, gpu: bool, size: int) -> Rates:
    """With about `size` bytes each."""
    size = max(1, size // BLOCK) * BLOCK
    rates = await asyncio.to_thread(disk_rates, disk / "ceiling", size)
    rates["first touch of host memory"] = await asyncio.to_thread(touch_rate, size)
    if HUGE_PAGES.exists():
        rates["the same in huge pages"] = await asyncio.to_thread(touch_rate, size, huge=True)
    return {**(await _pinned_rates() if gpu else {}), **rates}


def lines(rates: Rates) -> list[str]:
    setting = HUGE_PAGES.read_text().strip() if HUGE_PAGES.exists() else "none"
    told = (f"  {name:<28} {rate / 1e9:6.2f} GB/s" for name, rate in rates.items())
    return ["ceilings of this machine", *told, f"  transparent huge pages       {setting}"]


def disk_rates(file: Path, size: int) -> Rates:
    """Large writes and reads past the page cache, where the file system lets them."""
    block = mmap.mmap(-1, BLOCK)
    block.write(os.urandom(len(block)))
    try:
        write = _rate(size, lambda: _write(file, block, size))
        read = _rate(size, lambda: _read(file, block))
    finally:
        file.unlink(missing_ok=True)
    return {"disk, write": write, "disk, read": read}


def touch_rate(size: int, *, huge: bool = False) -> float:
    """First use of fresh host memory, one thread: what the driver's checkpoint begins with."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if HUGE_PAGES.exists():
            memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        first = ctypes.c_char.from_buffer(memory)
        rate = _rate(size, partial(ctypes.memset, ctypes.addressof(first), 1, size))
        del first  # or the mapping cannot be closed
    return rate


def _rate(size: int, work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return size / (time.monotonic() - began)


def _write(file: Path, block: mmap.mmap, size: int) -> None:
    descriptor = _open(file, os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(size // len(block)):
            os.write(descriptor, block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(file: Path, block: mmap.mmap) -> None:
    descriptor = _open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while os.readv(descriptor, [block]):
            pass
    finally:
        os.close(descriptor)


def _open(file: Path, flags: int) -> int:
    try:
        return os.open(file, flags | os.O_DIRECT, 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system in memory has no other way
            raise
        return os.open(file, flags, 0o600)


async def _pinned_rates() -> Rates:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.gpu.ceilings"), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(COPY_SECONDS):
            told, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"the copies were not measured: status {process.returncode}")
    rates: Rates = json.loads(told)
    return rates


def copy_rates() -> Rates:
    import torch  # noqa: PLC0415 - a machine without a GPU has none

    pinned = torch.ones(COPIED, dtype=torch.uint8, pin_memory=True)
    device = torch.ones(COPIED, dtype=torch.uint8, device="cuda")

    def copied(to: "torch.Tensor", source: "torch.Tensor") -> float:
        rates = []
        for _ in range(REPEATS):
            torch.cuda.synchronize()
            rates.append(_rate(COPIED, lambda: (to.copy_(source), torch.cuda.synchronize())))
        return max(rates)

    return {
        "pinned copy, GPU to host": copied(pinned, device),
        "pinned copy, host to GPU": copied(device, pinned),
    }


if __name__ == "__main__":
    print(json.dumps(copy_rates()))
