"""What `kybernate-runc` adds to runc's own calls: `make bench-wrapper`.

The same call goes to runc and through the wrapper by turns: `--version`, `state` of a container
that there is not, and `create` of a bundle without root filesystem: there the wrapper looks for the
annotation. Medians; the last line is JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kybernate.embedded.oci import Place, Workload, spec
from kybernate.embedded.stack import Stack, find_stack

WRAPPER = Path(__file__).parents[1] / "deploy/runtime/kybernate-runc"
LEAST_ROUNDS = 100
WARM_UP = 5
TO_REACH_MS = 3.0


def milliseconds(program: Path, arguments: Sequence[str]) -> float:
    """One call as a shim makes it, until it has ended."""
    nowhere = subprocess.DEVNULL
    began = time.perf_counter()
    subprocess.run([program, *arguments], stdout=nowhere, stderr=nowhere, check=False, timeout=60)
    return 1000 * (time.perf_counter() - began)


def alternate(rounds: int, runc: Path, wrapper: Path, arguments: Sequence[str]) -> dict[str, float]:
    times: dict[Path, list[float]] = {runc: [], wrapper: []}
    for number in range(rounds + WARM_UP):
        order = (runc, wrapper) if number % 2 else (wrapper, runc)
        for program in order:
            taken = milliseconds(program, arguments)
            if number >= WARM_UP:
                times[program].append(taken)
    bare, through = (statistics.median(times[program]) for program in (runc, wrapper))
    return {
        "runc_ms": round(bare, 3),
        "wrapper_ms": round(through, 3),
        "overhead_ms": round(through - bare, 3),
    }


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
    worst = max(line["overhead_ms"] for line in result.values())
    print(
        json.dumps(
            {
                "bench": "wrapper",
                "rounds": rounds,
                "calls": result,
                "overhead_ms": worst,
                "to_reach_ms": TO_REACH_MS,
                "reached": worst <= TO_REACH_MS,
            }
        )
    )


if __name__ == "__main__":
    main()
