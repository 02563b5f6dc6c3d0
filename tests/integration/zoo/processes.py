"""Process trees, threads, users, sessions: who a workload is."""

import fcntl
import os
import resource
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from zoo.animal import animal, expect, fork


@animal
def process_tree() -> Iterator[None]:
    """Children and grandchildren that answer through pipes, and keep their parents."""

    def generation(depth: int) -> tuple[int, int, int]:
        down, up = os.pipe(), os.pipe()

        def live() -> None:
            below = generation(depth - 1) if depth else None
            while request := os.read(down[0], 64):
                mine = f"{os.getppid()}>{os.getpid()}"
                os.write(up[1], mine.encode() + (b" " + ask(below, request) if below else b""))

        return fork(live), down[1], up[0]

    def ask(member: tuple[int, int, int], request: bytes) -> bytes:
        os.write(member[1], request)
        return os.read(member[2], 256)

    family = [generation(2) for _ in range(3)]
    before = [ask(member, b"who") for member in family]
    yield
    while True:
        expect([ask(member, b"who") for member in family] == before, "the family has changed")
        yield


@animal
def threads() -> Iterator[None]:
    """Threads with values of their own, some of them waiting on a lock or a condition."""
    local, seen, condition = threading.local(), {}, threading.Condition()
    barrier = threading.Barrier(13)

    def live(number: int) -> None:
        local.value = number * number
        barrier.wait()
        while True:
            with condition:
                condition.wait()
                seen[number] = local.value

    for number in range(12):
        threading.Thread(target=live, args=(number,), daemon=True).start()
    barrier.wait()
    time.sleep(0.1)
    yield
    while True:
        seen.clear()
        with condition:
            condition.notify_all()
        for _ in range(200):
            if len(seen) == 12:
                break
            time.sleep(0.01)
        expect(seen == {number: number * number for number in range(12)}, f"threads say {seen}")
        yield


@animal
def not_root() -> Iterator[None]:
    """Started as another user, with limits and a file of its own."""
    expect((os.getuid(), os.getgid()) == (1000, 1000), "this animal wants user 1000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
    resource.setrlimit(resource.RLIMIT_CPU, (1 << 33, 1 << 34))
    limits = _limits()
    path = Path(tempfile.mkdtemp(dir="/tmp")) / "mine"
    path.write_text("mine")
    yield
    while True:
        expect((os.getuid(), os.getgid()) == (1000, 1000), "the user differs")
        expect(_limits() == limits, f"{limits} became {_limits()}")
        expect(path.read_text() == "mine", "the file differs")
        expect(path.stat().st_uid == 1000, "the file's owner differs")
        try:
            os.chown(path, 0, 0)
        except PermissionError:
            yield
        else:
            raise AssertionError("the user may do what root may")


def _limits() -> list[tuple[int, int]]:
    kinds = (name for name in dir(resource) if name.startswith("RLIMIT_"))
    return [resource.getrlimit(getattr(resource, name)) for name in kinds]


@animal
def few_capabilities() -> Iterator[None]:
    """No capability beyond the few it was given, before and after."""
    before = _capabilities()
    yield
    while True:
        expect(_capabilities() == before, f"{before} became {_capabilities()}")
        yield


def _capabilities() -> list[str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("Cap", "NoNewPrivs"))]


@animal
def sessions_and_groups() -> Iterator[None]:
    """Sessions, process groups and a zombie that nobody has waited for."""
    asked, answered = os.pipe(), os.pipe()

    def lead() -> None:
        os.setsid()
        while os.read(asked[0], 1):
            os.write(answered[1], struct.pack("iii", os.getpid(), os.getsid(0), os.getpgid(0)))

    leader = fork(lead)
    zombie = fork(lambda: None)
    time.sleep(0.1)
    yield
    seen = False
    while True:
        os.write(asked[1], b"?")
        expect(
            struct.unpack("iii", os.read(answered[0], 12)) == (leader, leader, leader),
            "the session differs",
        )
        if not seen:
            expect(os.waitpid(zombie, 0)[0] == zombie, "the zombie is gone")
            seen = True
        yield


@animal
def limits_and_surroundings() -> Iterator[None]:
    """Resource limits, niceness, umask, working directory, environment, open descriptors' flags."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (123, 456))
    niceness = os.nice(5)
    os.umask(0o027)
    Path("/var/tmp/here").mkdir(parents=True, exist_ok=True)
    os.chdir("/var/tmp/here")
    os.environ["ZOO"] = "yes"
    descriptor = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC | os.O_APPEND)
    yield
    while True:
        expect(resource.getrlimit(resource.RLIMIT_NOFILE) == (123, 456), "the limit differs")
        expect(os.nice(0) == niceness, "the niceness differs")
        expect(os.umask(0o027) == 0o027, "the umask differs")
        expect(Path.cwd() == Path("/var/tmp/here"), "the working directory differs")
        expect(os.environ["ZOO"] == "yes", "the environment differs")
        expect(not os.get_inheritable(descriptor), "the descriptor became inheritable")
        expect(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND, "its flag is lost")
        yield
