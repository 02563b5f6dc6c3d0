"""A GPU process worth keeping: it counts, and holds GPU memory whose digest must never change.

    python3 gpu_workload.py [--gib 2] [--gpus N] [--interval 1.0] [--digest-every 0]
                            [--digest-file FILE]

Needs PyTorch. Fills about GIB of GPU memory (shared out over N GPUs, or all it sees), then prints
`Loop N: …` once per interval; every count is computed on the GPU. On SIGUSR1, and every
DIGEST_EVERY loops, it prints, and writes to FILE, a digest over all of that memory. Checkpoint
it, end it, resume it, also on another GPU: the count goes on, and the digest is the same.
"""

import argparse
import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

BLOCK = 64 << 20
"""Bytes that are filled and summed up at a time, to need little memory besides the data."""
WORD = 8
FACTOR = 0x5851F42D4C957F2D
"""Odd, so that multiplying by it loses nothing."""


def main() -> None:
    arguments = parse()
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: asked.append(number))
    data = fill(int(arguments.gib * (1 << 30)), arguments.gpus or torch.cuda.device_count())
    counter = torch.zeros(1, dtype=torch.int64, device="cuda")
    for _ in itertools.count():
        counter += 1
        loop = int(counter.item())
        print(f"Loop {loop}: {arguments.gib:g} GiB on {names()}", flush=True)
        if asked or (arguments.digest_every and loop % arguments.digest_every == 0):
            asked.clear()
            tell(digest(data), loop, arguments.digest_file)
        time.sleep(arguments.interval)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=2.0, help="GPU memory to hold, in GiB")
    parser.add_argument("--gpus", type=int, help="how many GPUs to use (default: all it sees)")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two counts")
    parser.add_argument("--digest-every", type=int, default=0, help="loops between two digests")
    parser.add_argument("--digest-file", type=Path, help="where a digest goes besides the output")
    return parser.parse_args()


def names() -> str:
    count = torch.cuda.device_count()
    return ", ".join(torch.cuda.get_device_name(index) for index in range(count))


def fill(size: int, gpus: int) -> list[Any]:
    """Random blocks, dealt out over the GPUs in turn."""
    blocks = []
    devices = itertools.cycle(range(gpus))
    for start in range(0, size, BLOCK):
        words = min(BLOCK, size - start) // WORD
        device = f"cuda:{next(devices)}"
        blocks.append(torch.randint(-(1 << 61), 1 << 61, (words,), device=device))
    return blocks


def digest(blocks: list[Any]) -> str:
    """A sum, modulo 2**64, in which every word counts with its own factor: order matters."""
    total = 0
    for number, block in enumerate(blocks):
        factors = torch.arange(block.numel(), device=block.device).mul_(2).add_(1)
        part = int(factors.mul_(block).sum().item())
        total = (total * FACTOR + part + number) % (1 << 64)
    return f"{total:016x}"


def tell(digest: str, loop: int, file: Path | None) -> None:
    print(f"Digest at loop {loop}: {digest}", flush=True)
    if file:
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.write_text(f"{digest}\n")
        draft.replace(file)


if __name__ == "__main__":
    main()
