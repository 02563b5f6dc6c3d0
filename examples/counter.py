"""A process worth keeping: it counts, and holds memory whose digest must never change.

    python3 counter.py [--mib 64] [--interval 1.0] [--digest-file FILE]

Prints `Loop N: …` once per interval. On SIGUSR1 it prints, and writes to FILE, a digest over all
of its data. Checkpoint it, end it, resume it: the count goes on, and the digest is the same. This
is the twin of gpu_workload.py that needs nothing but Python.
"""

import argparse
import hashlib
import itertools
import os
import signal
import time
from pathlib import Path


def main() -> None:
    arguments = parse()
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: asked.append(number))
    data = b"".join(os.urandom(1 << 20) for _ in range(arguments.mib))
    for loop in itertools.count(1):
        print(f"Loop {loop}: {arguments.mib} MiB of memory", flush=True)
        if asked:
            asked.clear()
            tell(hashlib.sha256(data).hexdigest(), loop, arguments.digest_file)
        time.sleep(arguments.interval)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=64, help="memory to hold, in MiB")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two counts")
    parser.add_argument("--digest-file", type=Path, help="where a digest goes besides the output")
    return parser.parse_args()


def tell(digest: str, loop: int, file: Path | None) -> None:
    print(f"Digest at loop {loop}: {digest}", flush=True)
    if file:
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.write_text(f"{digest}\n")
        draft.replace(file)


if __name__ == "__main__":
    main()
