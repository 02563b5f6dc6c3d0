"""GPU memory through checkpoint and resume, step by step, beside containerd: `make bench-gpu`.

Prints medians per step and side for each size, the machine's own rates, and last a JSON line.
`--driver simulated` takes the same way without a GPU; its numbers say nothing about one.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from bench.bare import Bare
from bench.gpu import ceilings, report
from bench.gpu.sides import BareSide, ContentStoreSide, DriverCalls, KybernateSide, Seconds, Side
from bench.gpu.subject import DRIVERS, GIB, Gpus, NoGpu, Watched, find_gpus
from bench.through_kybernate import ThroughKybernate
from bench.user import User, user_of
from kybernate import tasks
from kybernate.embedded.counting import CannotCount
from kybernate.embedded.host import HostSettings, all_in_one
from kybernate.embedded.workload import Workloads
from node_worker.containerd.calls import open_caller
from node_worker.containerd.client import Containerd, connect

ROUNDS = 5
SIZES = (2.0, 20.0)
CEILING_BYTES = 4 * GIB


class Budget:
    """How much time is left, and whether another round would still end in it."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._longest: dict[float, float] = {}

    def allows_round(self, gib: float) -> bool:
        return self._end is None or time.monotonic() + self._expected(gib) < self._end

    def spent(self, gib: float, seconds: float) -> None:
        """A round of that size took so long."""
        self._longest[gib] = max(self._longest.get(gib, 0.0), seconds)

    def _expected(self, gib: float) -> float:
        """As the longest of that size; before there is one, in proportion to another size."""
        others = (seconds * gib / size for size, seconds in self._longest.items())
        return self._longest.get(gib) or max(others, default=0.0)


class Place(msgspec.Struct, frozen=True):
    """What runs while all sizes are measured."""

    workloads: Workloads
    runtime: Containerd
    gpus: Gpus
    driver: DriverCalls
    user: User
    caller: Any
    folder: Path


@asynccontextmanager
async def opened(folder: Path, gpus: Gpus, driver: DriverCalls) -> AsyncIterator[Place]:
    settings = HostSettings(
        folder=folder,
        node="bench",
        listen="127.0.0.1:0",
        gpu_driver=gpus.module,
        gpu_argument=gpus.argument,
    )
    async with (
        all_in_one(settings) as host,
        connect(host.containerd) as runtime,
        open_caller(host.containerd) as caller,
        user_of(host.url) as user,
    ):
        if host.daemon is None:
            raise AssertionError("without a socket of another, the containerd is a private one")
        workloads = Workloads(host.daemon, runtime)
        yield Place(workloads, runtime, gpus, driver, user, caller, folder)


async def measured(
    place: Place, gib: float, *, rounds: int, warm_up: int, budget: Budget
) -> dict[str, list[Seconds]]:
    """What each side's rounds took; fewer rounds, or none, where the time is used up."""
    if not budget.allows_round(gib):
        return {}
    id = f"bench-{gib:g}".replace(".", "-")
    counter = place.gpus.counter(gib)
    running = await place.workloads.start_container(id, counter.workload, python=counter.python)
    watched = Watched(place.runtime, running)
    await watched.goes_on()
    bare = Bare(place.runtime, id, running.log, place.folder / "bare")
    sides: tuple[Side, ...] = (
        BareSide(place.runtime, place.driver, bare, id),
        ContentStoreSide(place.runtime, place.driver, place.caller, id),
        KybernateSide(ThroughKybernate(place.user, id, [])),
    )
    times: dict[str, list[Seconds]] = {side.name: [] for side in sides}
    for number in range(-warm_up, rounds):
        if not budget.allows_round(gib):
            break
        began = time.monotonic()
        went = await one_round(sides, number, watched)
        budget.spent(gib, time.monotonic() - began)
        if number >= 0:
            for name, seconds in went.items():
                times[name].append(seconds)
    await running.remove()
    return times


async def one_round(sides: Sequence[Side], number: int, watched: Watched) -> dict[str, Seconds]:
    """Each side once, another one first each time; the data is looked at after each."""
    first = number % len(sides)
    went: dict[str, Seconds] = {}
    for side in (*sides[first:], *sides[:first]):
        went[side.name] = await side.round()
        await watched.goes_on()
        await side.clean()
    for side in sides:
        steps = "  ".join(f"{step} {took:.3f}" for step, took in went[side.name].items())
        print(f"round {number}  {side.name:<14}{steps}", flush=True)
    return went


async def compare(given: argparse.Namespace, folder: Path) -> None:
    budget = Budget(given.budget)
    gpus = find_gpus(given.driver, folder)
    driver = DriverCalls(gpus.open())
    size = min(CEILING_BYTES, int(max(given.gib) * GIB))
    rates = await ceilings.measure(folder, gpu=given.driver == "cuda", size=size)
    print("\n".join(ceilings.lines(rates)), flush=True)
    results: list[dict[str, Any]] = []
    async with opened(folder, gpus, driver) as place:
        for gib in given.gib:
            warm_up = 0 if results else given.warm_up
            times = await measured(place, gib, rounds=given.rounds, warm_up=warm_up, budget=budget)
            if not times.get(report.KYBERNATE):
                print(f"{gib:g} GiB: no round fits into the time that is left", flush=True)
                continue
            print("\n".join(report.lines(gib, times)), flush=True)
            results.append(report.result(gib, times))
    told = {name: round(rate / 1e9, 2) for name, rate in rates.items()}
    print(json.dumps({"driver": given.driver, "ceilings_gb_per_s": told, "sizes": results}))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--gib", type=float, nargs="+", default=SIZES, help="GPU memory to hold")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--warm-up", type=int, default=1, help="uncounted rounds of the first size")
    parser.add_argument("--budget", type=float, help="seconds after which no round is started")
    parser.add_argument("--driver", choices=sorted(DRIVERS), default="cuda")
    parser.add_argument(
        "--disk", help="folder on the disk to measure on (default: the temporary one)"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ky-", dir=given.disk) as folder:
        try:
            asyncio.run(tasks.run_until_signalled(compare(given, Path(folder))))
        except (NoGpu, CannotCount) as error:
            raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
