"""What `kybernate-runc` adds to runc's own calls: `make bench-wrapper`.

The same call goes to runc and through the wrapper by turns: `--version`, `state` of a container
that there is not, and `create` of a bundle without root filesystem: there the wrapper looks for the
annotation. Medians, of the overhead over the pairs; the last line is JSON. On a busy machine every
process waits for its turn: the CPU's own time tells then what the clock cannot.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from kybernate.embedded.oci import Place, Workload, spec
from kybernate.embedded.stack import Stack, find_stack

WRAPPER = Path(__file__).parents[1] / "deploy/runtime/kybernate-runc"
LEAST_ROUNDS = 100
WARM_UP = 5
TO_REACH_MS = 3.0


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """One call as a shim makes it, until it has ended: milliseconds of the clock and of the CPU."""

    wall: float
    cpu: float


def call(program: Path, arguments: Sequence[str]) -> Taken:
    nowhere = subprocess.DEVNULL
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([program, *arguments], stdout=nowhere, stderr=nowhere, check=False, timeout=60)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(wall=1000 * wall, cpu=1000 * cpu)


def alternate(rounds: int, runc: Path, wrapper: Path, arguments: Sequence[str]) -> dict[str, float]:
    taken: dict[Path, list[Taken]] = {runc: [], wrapper: []}
    for number in range(rounds + WARM_UP):
        order = (runc, wrapper) if number % 2 else (wrapper, runc)
        for program in order:
            taken[program].append(call(program, arguments))
    bare, through = (taken[program][WARM_UP:] for program in (runc, wrapper))
    return {
        "runc_ms": median(one.wall for one in bare),
        "wrapper_ms": median(one.wall for one in through),
        "overhead_ms": median(two.wall - one.wall for one, two in zip(bare, through, strict=True)),
        "overhead_cpu_ms": median(
            two.cpu - one.cpu for one, two in zip(bare, through, strict=True)
        ),
    }


def median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)


def installed(folder: Path, stack: Stack) -> Path:
    wrapper = folder / WRAPPER.name
    shutil.copy(WRAPPER, wrapper)
    wrapper.with_name(f"{wrapper.name}.conf").write_text(
        f"RUNC={stack.runc}\nSTATE={folder}/state\nCRIU={stack.criu.parent}\nTIMEOUT=100\n"
    )
    return wrapper


def bundle(folder: Path, stack: Stack) -> Path:
    """A spec as large as a pod's; creating it fails, as quickly as runc can tell."""
    made = folder / "bundle"
    made.mkdir()
    workload = Workload(
        args=("/bin/true",),
        env={f"SERVICE_{number}_PORT": "tcp://10.0.0.1:443" for number in range(200)},
        annotations={"io.kubernetes.cri.container-type": "container"},
    )
    place = Place(
        id="bench", cgroup="/bench", busybox=stack.busybox, criu_config=made / "criu.conf"
    )
    value = msgspec.json.decode(spec(workload, place).value)
    value["root"]["path"] = "missing"
    (made / "config.json").write_bytes(msgspec.json.encode(value))
    return made


def measure(rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    stack = find_stack()
    wrapper = installed(folder, stack)
    globals_ = ("--root", str(folder / "runc"), "--log", os.devnull, "--log-format", "json")
    calls: dict[str, Sequence[str]] = {
        "version": ("--version",),
        "state": (*globals_, "state", "nothing"),
        "create": (*globals_, "create", "--bundle", str(bundle(folder, stack)), "bench"),
    }
    return {name: alternate(rounds, stack.runc, wrapper, args) for name, args in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help=f"at least {LEAST_ROUNDS}")
    rounds = max(LEAST_ROUNDS, parser.parse_args().rounds)
    with tempfile.TemporaryDirectory(prefix="ky-bench-") as folder:
        result = measure(rounds, Path(folder))
    for name, line in result.items():
        print(f"{name:<8} " + "   ".join(f"{key} {value:7.3f}" for key, value in line.items()))
    worst, worst_cpu = (
        max(line[name] for line in result.values()) for name in ("overhead_ms", "overhead_cpu_ms")
    )
    print(
        json.dumps(
            {
                "bench": "wrapper",
                "rounds": rounds,
                "calls": result,
                "overhead_ms": worst,
                "overhead_cpu_ms": worst_cpu,
                "to_reach_ms": TO_REACH_MS,
                "reached": worst <= TO_REACH_MS,
            }
        )
    )


if __name__ == "__main__":
    main()
