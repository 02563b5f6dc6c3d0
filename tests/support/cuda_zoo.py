"""Processes that use CUDA in different ways, one by its name: for what the driver can bring back.

`python tests/support/cuda_zoo.py FOLDER KIND`: counts in FOLDER/progress, with a digest that must
never change. Each count does some work on the GPU and ends the process if its result is wrong.
"""

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = Callable[[int], bytes]
"""Does the work of the loop with that number; the data whose digest must not change."""

WORDS = 1 << 22
CYCLES_PER_SECOND = 1_700_000_000
BUSY_SECONDS = 8


def pinned() -> Step:
    """Pinned host memory that the GPU reads and writes."""
    import torch

    host = torch.arange(WORDS).pin_memory()
    back = torch.empty_like(host).pin_memory()

    def step(_loop: int) -> bytes:
        back.copy_(host.cuda(non_blocking=True), non_blocking=True)
        torch.cuda.synchronize()
        return bytes(back.numpy())

    return step


def streams() -> Step:
    """Several streams and events with work in flight at any moment."""
    import torch

    lanes: Any = [torch.cuda.Stream() for _ in range(4)]
    data: Any = [torch.full((WORDS,), number, device="cuda") for number in range(4)]
    torch.cuda.synchronize()

    def step(_loop: int) -> bytes:
        for lane, block in zip(lanes, data, strict=True):
            with torch.cuda.stream(lane):
                for _ in range(50):
                    block.add_(1).sub_(1)
        torch.cuda.synchronize()
        return b"".join(bytes(block.cpu().numpy()) for block in data)

    return step


def graph() -> Step:
    """A captured CUDA graph that is replayed."""
    import torch

    count: Any = torch.zeros(WORDS, dtype=torch.int64, device="cuda")
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        count += 1
    count.zero_()

    def step(loop: int) -> bytes:
        captured.replay()
        torch.cuda.synchronize()
        expect(count.eq(loop).all().item())
        return bytes((count - loop).cpu().numpy())

    return step


def threads() -> Step:
    """Threads that launch kernels without pause."""
    import torch

    blocks: Any = [torch.ones(WORDS, device="cuda") for _ in range(4)]

    def launch(block: Any) -> None:
        while True:
            block.mul_(2).div_(2)
            torch.cuda.current_stream().synchronize()

    for block in blocks:
        threading.Thread(target=launch, args=(block,), daemon=True).start()
    still: Any = torch.arange(WORDS, device="cuda")
    return lambda _loop: bytes(still.cpu().numpy())


def compiled() -> Step:
    """A function that torch.compile turned into kernels."""
    import torch

    data: Any = torch.arange(WORDS, dtype=torch.float32, device="cuda")
    function: Any = torch.compile(lambda x: (x * 2 + 1).relu() - x)
    return lambda _loop: bytes(function(data).cpu().numpy())


def jax() -> Step:
    """JAX with a jitted function."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax
    import jax.numpy as jnp

    data = jnp.arange(WORDS, dtype=jnp.float32)
    function = jax.jit(lambda x: jnp.sin(x) + x)
    return lambda _loop: bytes(jax.device_get(function(data)))


def cupy() -> Step:
    """CuPy with a kernel that it compiled."""
    import cupy

    data = cupy.arange(WORDS)
    kernel = cupy.ElementwiseKernel("int64 x", "int64 y", "y = x * 3 + 1", "triple")

    def step(_loop: int) -> bytes:
        result: bytes = cupy.asnumpy(kernel(data)).tobytes()
        return result

    return step


def loaded() -> Step:
    """CUDA loaded and initialised, without a context."""
    expect(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    return lambda _loop: b"no context"


def parent() -> Step:
    """A process whose forked child never uses the GPU; FOLDER/child says which it is."""
    import torch

    data: Any = torch.arange(WORDS, device="cuda")
    child = os.fork()
    if not child:
        signal.pause()
    (Path(sys.argv[1]) / "child").write_text(str(child))
    return lambda _loop: bytes(data.cpu().numpy())


def managed() -> Step:
    """Managed memory, which the driver cannot checkpoint."""
    import cupy

    cupy.cuda.set_allocator(cupy.cuda.MemoryPool(cupy.cuda.malloc_managed).malloc)
    data = cupy.zeros(1 << 27, dtype=cupy.uint8)

    def step(_loop: int) -> bytes:
        cupy.cuda.get_current_stream().synchronize()
        result: bytes = cupy.asnumpy(data[:4096]).tobytes()
        return result

    return step


def shared() -> Step:
    """Memory that a second process has as well, over CUDA IPC; it says so in FOLDER/seen."""
    import cupy

    runtime = cupy.cuda.runtime
    size = 1 << 20
    address = runtime.malloc(size)
    runtime.memset(address, 7, size)
    runtime.deviceSynchronize()
    handle = runtime.ipcGetMemHandle(address)
    seen = Path(sys.argv[1]) / "seen"
    subprocess.Popen([sys.executable, "-c", SHARER, handle.hex(), str(size), str(seen)])
    memory = cupy.cuda.UnownedMemory(address, size, None)
    data = cupy.ndarray(size, cupy.uint8, cupy.cuda.MemoryPointer(memory, 0))

    def step(_loop: int) -> bytes:
        result: bytes = cupy.asnumpy(data).tobytes()
        return result

    while not seen.exists():
        time.sleep(0.01)
    return step


SHARER = """\
import pathlib, signal, sys, cupy
size = int(sys.argv[2])
address = cupy.cuda.runtime.ipcOpenMemHandle(bytes.fromhex(sys.argv[1]))
memory = cupy.cuda.UnownedMemory(address, size, None)
data = cupy.ndarray(size, cupy.uint8, cupy.cuda.MemoryPointer(memory, 0))
assert int(data.sum()) == 7 * size
pathlib.Path(sys.argv[3]).touch()
signal.pause()
"""


def busy() -> Step:
    """One long kernel after the other; FOLDER/kernel says of which loop one runs."""
    import torch

    kernel = Path(sys.argv[1]) / "kernel"

    def step(loop: int) -> bytes:
        torch.cuda._sleep(BUSY_SECONDS * CYCLES_PER_SECOND)
        kernel.write_text(str(loop))
        torch.cuda.synchronize()
        return b"no data"

    return step


KINDS: dict[str, Callable[[], Step]] = {
    kind.__name__: kind
    for kind in (
        *(pinned, streams, graph, threads, compiled, jax, cupy, loaded, parent),
        *(busy, managed, shared),
    )
}
ORDINARY = KINDS.keys() - {"busy", "managed", "parent", "shared"}
"""What comes back, and needs no other test than that."""


def expect(true: object) -> None:
    if not true:
        sys.exit("a result of the GPU is wrong")


def main() -> None:
    home, kind = Path(sys.argv[1]), sys.argv[2]
    step = KINDS[kind]()
    for loop in range(1, sys.maxsize):
        digest = hashlib.sha256(step(loop)).hexdigest()[:16]
        draft = home / "progress.new"
        draft.write_text(f"Loop {loop}: {digest}\n")
        draft.replace(home / "progress")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
