"""What Kybernate adds to containerd's own checkpoint and restore: `make bench-overhead`.

One container holding 256 MiB goes round by turns: by bare containerd calls, made durable with
an fsync of everything written, and by Kybernate, from the REST request to the watched end of the
action, with hashes, manifest and verification. Both use the same options and the same disk.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.bare import Bare
from bench.call_clock import recorded_calls
from bench.through_kybernate import ThroughKybernate, Went
from bench.user import user_of
from kybernate import tasks
from kybernate.embedded.host import HostSettings, all_in_one
from kybernate.embedded.oci import Workload
from kybernate.embedded.workload import Running, Workloads
from node_worker.containerd.client import connect

CONTAINER = "bench"
LEAST_ROUNDS = 20
WARM_UP = 1
SETTLE_SECONDS = 0.3
HOLDER = """
import os, sys, time
held = bytearray(os.urandom(int(sys.argv[1])))
count = 0
while True:
    count += 1
    print(count, flush=True)
    time.sleep(0.01)
"""


class Measured:
    """The times of one side, in seconds."""

    def __init__(self) -> None:
        self.checkpoint: list[float] = []
        self.restore: list[float] = []

    def line(self, name: str) -> str:
        times = (self.checkpoint, self.restore)
        both = (f"{1000 * statistics.median(of):8.1f} ms" for of in times)
        return f"{name:<10} checkpoint {next(both)}   restore {next(both)}   (medians)"


async def alternate(rounds: int, running: Running, bare: Bare, ours: ThroughKybernate) -> str:
    """The result as a JSON line."""
    theirs, mine = Measured(), Measured()
    checkpoints, restores = list[Went](), list[Went]()
    for number in range(rounds + WARM_UP):
        times = await timed(bare.checkpoint), await timed(bare.restore)
        await running.wait_for_more(3)
        await bare.clean()
        await settled()
        went = await ours.checkpoint(), await ours.restore()
        await running.wait_for_more(3)
        await ours.clean()
        await settled()
        if number >= WARM_UP:
            theirs.checkpoint.append(times[0])
            theirs.restore.append(times[1])
            mine.checkpoint.append(went[0].seconds)
            mine.restore.append(went[1].seconds)
            checkpoints.append(went[0])
            restores.append(went[1])
    print(theirs.line("containerd"), mine.line("kybernate"), sep="\n")
    print("checkpoint", *step_lines(checkpoints), "restore", *step_lines(restores), sep="\n")
    return json.dumps(
        {
            "rounds": rounds,
            "checkpoint_ratio": round(ratio(mine.checkpoint, theirs.checkpoint), 3),
            "restore_ratio": round(ratio(mine.restore, theirs.restore), 3),
            "coordination_ms": round(
                1000 * statistics.median(went.coordination for went in (*checkpoints, *restores)), 1
            ),
        }
    )


async def settled() -> None:
    """What one side has written and removed must not burden the other."""
    await asyncio.to_thread(os.sync)
    await asyncio.sleep(SETTLE_SECONDS)


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.monotonic()
    await work()
    return time.monotonic() - began


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(ours) / statistics.median(theirs)


def step_lines(actions: list[Went]) -> list[str]:
    """The median of each step, and of what lies between them."""
    medians = {
        name: statistics.median(went.steps[name] for went in actions) for name in actions[0].steps
    }
    between = statistics.median(went.seconds - sum(went.steps.values()) for went in actions)
    medians["(between)"] = between
    return [f"  {name:<12} {1000 * median:8.1f} ms" for name, median in medians.items()]


async def measure(rounds: int, size: int, folder: Path) -> None:
    settings = HostSettings(folder=folder, node=CONTAINER, listen="127.0.0.1:0")
    async with (
        all_in_one(settings) as host,
        connect(host.containerd) as runtime,
        user_of(host.url) as user,
        recorded_calls() as calls,
    ):
        if host.daemon is None:
            raise AssertionError("without a socket of another, the containerd is a private one")
        workload = Workload(args=("-c", HOLDER, str(size)))
        workloads = Workloads(host.daemon, runtime)
        running = await workloads.start_container(CONTAINER, workload, python=True)
        await running.wait_for_more()
        bare = Bare(runtime, CONTAINER, running.log, folder / "bare")
        print(await alternate(rounds, running, bare, ThroughKybernate(user, CONTAINER, calls)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument(
        "--disk", help="folder on the disk to measure on (default: the temporary one)"
    )
    given = parser.parse_args()
    size = given.mebibytes * 1024 * 1024
    with tempfile.TemporaryDirectory(prefix="ky-", dir=given.disk) as folder:
        asyncio.run(tasks.run_until_signalled(measure(given.rounds, size, Path(folder))))


if __name__ == "__main__":
    main()
