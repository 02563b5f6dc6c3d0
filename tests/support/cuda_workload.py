"""A process that uses CUDA: counts, and tells a digest of its GPU memory with each count.

`python tests/support/cuda_workload.py FOLDER BYTES`: writes FOLDER/progress. SIGUSR1 keeps its
GPU busy with one kernel for as long as FOLDER/seconds says, and FOLDER/kernel says that it runs.
"""

import hashlib
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

CYCLES_PER_SECOND = 1_700_000_000


def main() -> None:
    home, size = Path(sys.argv[1]), int(sys.argv[2])
    data: Any = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda")
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: asked.append(number))
    for loop in range(1, sys.maxsize):
        if asked:
            asked.clear()
            seconds = float((home / "seconds").read_text())
            torch.cuda._sleep(int(seconds * CYCLES_PER_SECOND))
            (home / "kernel").touch()
            torch.cuda.synchronize()
        digest = hashlib.sha256(data.cpu().numpy()).hexdigest()[:16]
        draft = home / "progress.new"
        draft.write_text(f"Loop {loop}: {digest}\n")
        draft.replace(home / "progress")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
