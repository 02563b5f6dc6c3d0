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
Seconds = tuple[float, float]
"""Of a checkpoint and of a restore."""
HOLDER = """
import os, sys, time
held = bytearray(os.urandom(int(sys.argv[1])))
count = 0
while True:
    count += 1
    print(count, flush=True)
    time.sleep(0.01)
"""


async def alternate(rounds: int, running: Running, bare: Bare, ours: ThroughKybernate) -> str:
    """The result as a JSON line. The sides take turns in beginning, too."""
    theirs, mine = list[Seconds](), list[tuple[Went, Went]]()

    async def by_bare_calls() -> None:
        theirs.append((await timed(bare.checkpoint), await timed(bare.restore)))
        await running.wait_for_more(3)
        await bare.clean()

    async def by_kybernate() -> None:
        mine.append((await ours.checkpoint(), await ours.restore()))
        await running.wait_for_more(3)
        await ours.clean()

    for number in range(WARM_UP + rounds):
        sides = (by_bare_calls, by_kybernate)
        for side in sides if number % 2 else reversed(sides):
            await side()
            await settled()
    return told(theirs[WARM_UP:], mine[WARM_UP:])


def told(theirs: list[Seconds], mine: list[tuple[Went, Went]]) -> str:
    """Prints the medians."""
    checkpoints, restores = ([went[number] for went in mine] for number in (0, 1))
    bare = medians(theirs)
    ours = medians([(checkpoint.seconds, restore.seconds) for checkpoint, restore in mine])
    for name, (checkpoint, restore) in {"containerd": bare, "kybernate": ours}.items():
        print(
            f"{name:<10} checkpoint {1000 * checkpoint:8.1f} ms   restore {1000 * restore:8.1f} ms"
        )
    print("checkpoint", *step_lines(checkpoints), "restore", *step_lines(restores), sep="\n")
    coordination = statistics.median(went.coordination for went in (*checkpoints, *restores))
    return json.dumps(
        {
            "rounds": len(mine),
            "checkpoint_ratio": round(ours[0] / bare[0], 3),
            "restore_ratio": round(ours[1] / bare[1], 3),
            "coordination_ms": round(1000 * coordination, 1),
        }
    )


def medians(rounds: list[Seconds]) -> Seconds:
    checkpoints, restores = zip(*rounds, strict=True)
    return statistics.median(checkpoints), statistics.median(restores)


async def settled() -> None:
    """What one side has written and removed must not burden the other."""
    await asyncio.to_thread(os.sync)
    await asyncio.sleep(SETTLE_SECONDS)


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.monotonic()
    await work()
    return time.monotonic() - began


def step_lines(actions: list[Went]) -> list[str]:
    """The median of each step, and of what lies between them."""
    steps = {
        name: statistics.median(went.steps[name] for went in actions) for name in actions[0].steps
    }
    between = statistics.median(went.seconds - sum(went.steps.values()) for went in actions)
    steps["(between)"] = between
    return [f"  {name:<12} {1000 * median:8.1f} ms" for name, median in steps.items()]


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
