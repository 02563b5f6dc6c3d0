"""Timers, signals, event descriptors: what a workload waits for."""

import os
import select
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from zoo.animal import LIBC, animal, expect, fork

IN_MODIFY = 0x2
ITIMER_FAR_AWAY = 3600.0


@animal
def timers() -> Iterator[None]:
    """An interval timer that goes on, one that is far away."""
    fired = []
    signal.signal(signal.SIGALRM, lambda *_: fired.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    signal.setitimer(signal.ITIMER_VIRTUAL, ITIMER_FAR_AWAY)
    yield
    while True:
        fired.clear()
        deadline = time.monotonic() + 20
        while len(fired) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        expect(len(fired) >= 3, "the timer stands still")
        left = signal.getitimer(signal.ITIMER_VIRTUAL)[0]
        expect(ITIMER_FAR_AWAY / 2 < left < ITIMER_FAR_AWAY + 1, f"the far timer has {left} s left")
        yield


@animal
def timerfd() -> Iterator[None]:
    """A timer that is read from a descriptor."""
    descriptor = LIBC.timerfd_create(time.CLOCK_MONOTONIC, 0)
    interval = struct.pack("qqqq", 0, 20_000_000, 0, 20_000_000)
    LIBC.timerfd_settime(descriptor, 0, interval, None)
    yield
    while True:
        os.read(descriptor, 8)
        readable, _, _ = select.select([descriptor], [], [], 20)
        expect(readable, "the timer stands still")
        yield


@animal
def pending_signal() -> Iterator[None]:
    """A blocked signal that was sent before and is delivered after."""
    received = []
    signal.signal(signal.SIGUSR2, lambda *_: received.append(1))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    os.kill(os.getpid(), signal.SIGUSR2)
    yield
    while True:
        expect(signal.SIGUSR2 in signal.sigpending(), "the signal is no longer pending")
        expect(not received, "the signal came early")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        time.sleep(0.01)
        expect(received == [1], "the signal was lost")
        received.clear()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        os.kill(os.getpid(), signal.SIGUSR2)
        yield


@animal
def signal_descriptor() -> Iterator[None]:
    mask = struct.pack("Q120x", 1 << (signal.SIGUSR2 - 1))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    descriptor = LIBC.signalfd(-1, mask, 0)
    expect(descriptor >= 0, "no signalfd")
    yield
    while True:
        os.kill(os.getpid(), signal.SIGUSR2)
        expect(struct.unpack_from("I", os.read(descriptor, 128))[0] == signal.SIGUSR2, "not read")
        yield


@animal
def epoll_and_eventfd() -> Iterator[None]:
    """An epoll set over an event counter and a pipe, an edge-triggered one of them."""
    reading, writing = os.pipe()
    counter = LIBC.eventfd(5, 0)
    poller = select.epoll()
    poller.register(reading, select.EPOLLIN | select.EPOLLET)
    poller.register(counter, select.EPOLLIN)
    yield
    while True:
        os.write(writing, b"x")
        ready = {descriptor for descriptor, _ in poller.poll(5)}
        expect(ready == {reading, counter}, f"ready are {ready}")
        os.read(reading, 1)
        expect(struct.unpack("Q", os.read(counter, 8))[0] == 5, "the counter differs")
        os.write(counter, struct.pack("Q", 5))
        yield


@animal
def inotify() -> Iterator[None]:
    """A folder and a file of the root filesystem that are watched."""
    yield from _watching(Path("/var/tmp/watched"))


@animal
def inotify_on_tmpfs() -> Iterator[None]:
    yield from _watching(Path("/dev/shm/watched"))


def _watching(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    file = folder / "file"
    file.write_text("before")
    descriptor = LIBC.inotify_init1(os.O_NONBLOCK)
    watches = [
        LIBC.inotify_add_watch(descriptor, str(path).encode(), IN_MODIFY) for path in (folder, file)
    ]
    expect(min(watches) > 0, "no watch")
    yield
    while True:
        with file.open("a") as opened:
            opened.write("more")
        readable, _, _ = select.select([descriptor], [], [], 5)
        expect(readable, "no event came")
        expect(_events(os.read(descriptor, 4096)) == set(watches), "a watch is lost")
        yield


def _events(raw: bytes) -> set[int]:
    """The watches that were modified."""
    seen, place = set(), 0
    while place < len(raw):
        watch, mask, _, length = struct.unpack_from("iIII", raw, place)
        expect(mask == IN_MODIFY, f"the event is {mask}")
        seen.add(watch)
        place += 16 + length
    return seen


@animal
def waiting_in_system_calls() -> Iterator[None]:
    """Children in the middle of poll, nanosleep, futex and a blocking read."""
    reading, writing = os.pipe()
    ends = [os.pipe() for _ in range(3)]

    def reader() -> None:
        os.read(reading, 1)
        os.write(ends[0][1], b"r")

    def poller() -> None:
        select.poll().poll(100)
        while True:
            os.write(ends[1][1], b"p")
            select.poll().poll(200)

    def sleeper() -> None:
        while True:
            time.sleep(0.2)
            os.write(ends[2][1], b"s")

    for child in (reader, poller, sleeper):
        fork(child)
    yield
    first = True
    while True:
        if first:
            os.write(writing, b"x")
            expect(os.read(ends[0][0], 1) == b"r", "the reader did not wake")
            first = False
        for end, name in ((ends[1][0], "poller"), (ends[2][0], "sleeper")):
            readable, _, _ = select.select([end], [], [], 10)
            expect(readable, f"the {name} stands still")
            os.read(end, 4096)
        yield
