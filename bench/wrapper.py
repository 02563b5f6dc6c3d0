"""What `kybernate-runc` adds to runc's own calls: `make bench-wrapper`.

A container as large as a pod's is created, started, asked for its state, killed and deleted, by
runc and through the wrapper by turns; without a worker, as ordinary containers need none. A call
is timed as a shim would: from its start until it has ended. On a busy machine that tells above all
how long each process waits for a processor, so the wrapper is also timed alone, ahead of all others
(SCHED_FIFO), with `true` in runc's place: `alone_ms` is what it adds, and what is held to the aim.
Medians, those of what is added over the pairs; the last line is JSON.
"""

import argparse
import contextlib
import json
import os
import resource
import select
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from kybernate.embedded import leftovers
from kybernate.embedded.oci import Place, Workload, spec
from kybernate.embedded.rootfs import fill_busybox
from kybernate.embedded.stack import Stack, find_stack

WRAPPER = Path(__file__).parents[1] / "deploy/runtime/kybernate-runc"
LEAST_ROUNDS = 50
WARM_UP = 3
CALL_TIMEOUT = 60.0
VERBS = ("create", "start", "state", "kill", "delete")
TO_REACH_MS = 3.0
SERVICES = 200
"""As many as fill a config.json of a pod: about 20 KiB."""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """One call until it has ended: milliseconds of the clock and of the CPU."""

    wall: float
    cpu: float


class Side:
    """runc, or the wrapper: one of the two that take turns."""

    def __init__(self, program: Path, folder: Path, name: str) -> None:
        self.program = program
        self.id = name
        self.taken: dict[str, list[Taken]] = {}
        self._pid_file = folder / f"{name}.pid"
        self._bundle = folder / "bundle"
        self._globals = ("--root", str(leftovers.runc_root(folder)), "--log", os.devnull)
        self._environment = {**os.environ, leftovers.MARK: str(folder)}

    def lifetime(self) -> None:
        """Of one container; each call's time is kept."""
        pid_file = ("--pid-file", str(self._pid_file))
        self._call("create", "--bundle", str(self._bundle), *pid_file, self.id)
        self._call("start", self.id)
        self._call("state", self.id)
        with _ending(int(self._pid_file.read_text())):
            self._call("kill", self.id, "KILL")
        self._call("delete", self.id)

    def _call(self, verb: str, *arguments: str) -> None:
        words = [str(self.program), *self._globals, "--log-format", "json", verb, *arguments]
        self.taken.setdefault(verb, []).append(_timed(words, self._environment))


def _timed(words: Sequence[str], environment: dict[str, str]) -> Taken:
    nowhere = subprocess.DEVNULL
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(words, stdin=nowhere, stdout=nowhere, env=environment)
    with _ending(process.pid):  # `wait` with a time-out looks only now and then
        pass
    code = process.wait()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise SystemExit(f"{' '.join(words)} ended with {code}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(wall=1000 * wall, cpu=1000 * cpu)


@contextlib.contextmanager
def _ending(pid: int) -> Iterator[None]:
    """Wait at the end of the block until that process has ended."""
    handle = os.pidfd_open(pid)
    try:
        yield
        if not select.select([handle], [], [], CALL_TIMEOUT)[0]:
            raise SystemExit(f"process {pid} did not end in {CALL_TIMEOUT:.0f} s")
    finally:
        os.close(handle)


def alone_ms(rounds: int, folder: Path) -> dict[str, float]:
    """What the wrapper adds to a program that does nothing, by the verb."""
    true = shutil.which("true") or "true"
    wrapper = installed(folder / "alone", Path(true))
    bundle = ("--bundle", str(folder / "bundle"))
    added: dict[str, list[float]] = {verb: [] for verb in VERBS}
    for _ in range(rounds + WARM_UP):
        for verb, taken in added.items():
            words = ["--root", "/nowhere", verb, *(bundle if verb == "create" else ()), "alone"]
            nothing, through = _ahead_of_all(true, words), _ahead_of_all(str(wrapper), words)
            taken.append(through - nothing)
    return {verb: median(taken[WARM_UP:]) for verb, taken in added.items()}


def _ahead_of_all(program: str, words: Sequence[str]) -> float:
    first = (os.SCHED_FIFO, os.sched_param(20))
    began = time.perf_counter()
    pid = os.posix_spawn(program, [program, *words], os.environ, scheduler=first)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"{program} {' '.join(words)} ended with {status}")
    return 1000 * (time.perf_counter() - began)


def compared(bare: Sequence[Taken], through: Sequence[Taken]) -> dict[str, float]:
    pairs = list(zip(bare[WARM_UP:], through[WARM_UP:], strict=True))
    return {
        "runc_ms": median(one.wall for one, _ in pairs),
        "wrapper_ms": median(two.wall for _, two in pairs),
        "overhead_ms": median(two.wall - one.wall for one, two in pairs),
        "overhead_cpu_ms": median(two.cpu - one.cpu for one, two in pairs),
    }


def median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)


def installed(folder: Path, runc: Path, criu: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    wrapper = folder / WRAPPER.name
    shutil.copy(WRAPPER, wrapper)
    wrapper.with_name(f"{wrapper.name}.conf").write_text(
        f"RUNC={runc}\nSTATE={folder}/state\nCRIU={criu}\nTIMEOUT=100\n"
    )
    return wrapper


def make_bundle(folder: Path, stack: Stack) -> None:
    made = folder / "bundle"
    (made / "rootfs").mkdir(parents=True)
    fill_busybox(made / "rootfs", stack.busybox)
    workload = Workload(
        args=("/bin/sleep", "3600"),
        env={
            f"SERVICE_{number}_PORT_443_TCP_ADDR": "tcp://10.0.0.1:443"
            for number in range(SERVICES)
        },
        host_network=True,
        annotations={"io.kubernetes.cri.container-type": "container"},
    )
    place = Place(
        id="bench",
        cgroup=f"{leftovers.cgroup_parent(folder)}/bench",
        busybox=stack.busybox,
        criu_config=made / "criu.conf",
    )
    (made / "config.json").write_bytes(spec(workload, place).value)


def measure(rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    stack = find_stack()
    make_bundle(folder, stack)
    bare = Side(stack.runc, folder, "bare")
    wrapper = installed(folder, stack.runc, str(stack.criu.parent))
    through = Side(wrapper, folder, "through")
    try:
        for number in range(rounds + WARM_UP):
            for side in (bare, through) if number % 2 else (through, bare):
                side.lifetime()
    finally:
        leftovers.clear(folder)
    alone = alone_ms(rounds, folder)
    return {
        verb: compared(taken, through.taken[verb]) | {"alone_ms": alone[verb]}
        for verb, taken in bare.taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=150, help=f"at least {LEAST_ROUNDS}")
    rounds = max(LEAST_ROUNDS, parser.parse_args().rounds)
    with tempfile.TemporaryDirectory(prefix="ky-bench-") as folder:
        result = measure(rounds, Path(folder))
    for name, line in result.items():
        print(f"{name:<8} " + "   ".join(f"{key} {value:7.3f}" for key, value in line.items()))
    worst = max(line["alone_ms"] for line in result.values())
    told = {"bench": "wrapper", "rounds": rounds, "calls": result, "worst_ms": worst}
    print(json.dumps(told | {"to_reach_ms": TO_REACH_MS, "reached": worst <= TO_REACH_MS}))


if __name__ == "__main__":
    main()
