"""The resident process that calls the CUDA driver, so that a call that hangs can be killed.

`python -m node_worker.gpu.helper_process --state FOLDER --driver MODULE …`

The main thread reads requests from standard input; each is answered from a thread of its own,
because the driver's calls block and release the interpreter. The end of the input, or nobody to
read an answer, ends the process at once, whatever its threads are doing. A lock on a file of the
state folder lets only one helper per folder call the driver: the next one waits until the last
is really gone, also when that one was killed inside the kernel.
"""

import argparse
import fcntl
import importlib
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from node_worker.gpu.calls import answer
from node_worker.gpu.port import Driver
from node_worker.gpu.protocol import (
    LENGTH,
    Fault,
    Reply,
    Request,
    body_length,
    frame,
    request_in,
)

LOCK_FILE = "gpu-helper.lock"
EXIT_LOCKED = 75
THREADS = 64


def main() -> None:
    arguments = _arguments()
    _lock(Path(arguments.state), arguments.wait)
    requests, replies = _take_over_stdio()
    driver: Driver = importlib.import_module(arguments.driver).open_driver(arguments.argument)
    _serve(driver, requests, replies)
    os._exit(0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Calls the CUDA driver for the node worker.")
    parser.add_argument("--state", required=True, help="folder of the lock file")
    parser.add_argument("--driver", required=True, help="module with open_driver(argument)")
    parser.add_argument("--argument", default="", help="handed to open_driver")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait for the lock")
    return parser.parse_args()


def _lock(state: Path, seconds: float) -> None:
    """Hold the folder's lock until this process ends."""
    descriptor = os.open(state / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                sys.stderr.write(
                    f"the GPU helper of this folder with pid {holder} still lives: "
                    "it is stuck in the driver, or another worker uses the folder\n"
                )
                sys.exit(EXIT_LOCKED)
            time.sleep(0.02)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _take_over_stdio() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the worker; what a library prints goes to the log instead."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return sys.stdin.buffer, replies


def _serve(driver: Driver, requests: BinaryIO, replies: BinaryIO) -> None:
    one_at_a_time = threading.Lock()

    def handle(request: Request) -> None:
        message = frame(_reply(driver, request))
        with one_at_a_time:
            try:
                replies.write(message)
            except OSError:
                os._exit(0)  # nobody is left to answer to

    pool = ThreadPoolExecutor(max_workers=THREADS)
    while (head := requests.read(LENGTH.size)) and len(head) == LENGTH.size:
        body = requests.read(body_length(head))
        pool.submit(handle, request_in(body))


def _reply(driver: Driver, request: Request) -> Reply:
    try:
        return answer(driver, request)
    except Exception as error:  # noqa: BLE001 - whatever it is, its caller must hear of it
        return Reply(
            id=request.id, fault=Fault(code="", message=f"{type(error).__name__}: {error}")
        )


if __name__ == "__main__":
    main()
