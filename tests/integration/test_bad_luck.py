"""Bad luck on the real stack: a disk that fills up, a containerd or a NATS that goes away in the
middle, messages that should not be there. Whatever happens, the container runs on as before or is
durably checkpointed, and the next job is done.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import msgspec
import nats as nats_client
import nats.errors
import nats.js.errors
import pytest
import pytest_asyncio

from controller import app as controller_app
from controller.settings import ControllerSettings
from kybernate.bus import Bus, BusSettings
from kybernate.bus.nats import connect as connect_bus
from kybernate.client import client
from kybernate.embedded.containerd import private_containerd
from kybernate.embedded.nats_server import NatsServer, nats_server
from kybernate.embedded.oci import Workload
from kybernate.embedded.stack import find_stack
from kybernate.store import CheckpointStore, read_manifest, verify
from node_worker import app as worker_app
from node_worker.containerd.client import connect
from node_worker.executor import Point
from node_worker.settings import WorkerSettings
from schemas import reasons
from schemas.actions import Action, ActionState
from schemas.messages import Checkpointed, Job
from schemas.names import MAX_MESSAGE_BYTES, job_subject
from schemas.requests import RestoreRequest
from tests.support.counting import checkpoint_of, counter, counting, counts_on, failure
from tests.support.mounts import mounted
from tests.support.node import NODE, Node

MIB = 1024 * 1024
ACK_WAIT = 3.0
DISK = 160 * MIB
"""Small, and yet more than is asked for beside the memory of a container."""
HOLDER = Workload(args=("-c", f"""
import time
memory = bytearray(b"x" * {48 * MIB})
number = 0
while True:
    number += 1
    print(number, flush=True)
    time.sleep(0.02)
"""))  # fmt: skip

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("bad_luck")]


class House:
    """A whole node whose parts can be taken away, also exactly when a job comes to a point."""

    def __init__(self, node: Node, nats: NatsServer, bus: Bus, checkpoints: Path) -> None:
        self.node = node
        self.nats = nats
        self.bus = bus
        self.store = CheckpointStore(checkpoints)
        self.ballast = checkpoints.parent / "ballast"
        self.traps: dict[tuple[str, Point], Callable[[], object]] = {}

    def observe(self, step: str, point: Point) -> None:
        if trap := self.traps.pop((step, point), None):
            trap()

    def trap(self, step: str, act: Callable[[], object]) -> Callable[[], Awaitable[None]]:
        """Act before the next such step is done; what is returned waits until it has happened."""
        sprung = asyncio.Event()

        def spring() -> None:
            act()
            sprung.set()

        async def wait() -> None:
            async with asyncio.timeout(60):
                await sprung.wait()

        self.traps[step, Point.BEFORE_DO] = spring
        return wait

    def signal_containerd(self, number: signal.Signals) -> None:
        pid = self.node.daemon.pid
        assert pid is not None
        os.kill(pid, number)

    def leave_room(self, room: int) -> None:
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.store.free_bytes() - room)

    def fill_the_disk(self) -> None:
        self.leave_room(MIB // 4)
        with self.ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass

    def is_durable(self, checkpoint: str) -> bool:
        folder = self.store.folder(checkpoint)
        verify(folder, read_manifest(folder))
        return True

    def nothing_lies_aside(self) -> None:
        assert self.store.leftovers() == ()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    place, image = folder / "disk", folder / "disk.img"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    with mounted(place, "-o", "loop", str(image)):
        yield place


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house() -> AsyncIterator[House]:
    folder = Path(tempfile.mkdtemp(prefix="ky-", dir="/tmp"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        disk = stack.enter_context(small_disk(folder))
        nats = await stack.enter_async_context(nats_server(folder / "nats"))
        daemon = await stack.enter_async_context(private_containerd(find_stack(), folder / "c"))
        runtime = await stack.enter_async_context(connect(daemon.socket))
        settings = BusSettings(servers=(nats.url,), ack_wait=ACK_WAIT)
        buses = [
            await stack.enter_async_context(connect_bus(settings, name=name))
            for name in ("controller", "worker", "test")
        ]
        controller = ControllerSettings(listen="127.0.0.1:0", bus=settings)
        url = await stack.enter_async_context(controller_app.serving(controller, buses[0]))
        rest = await stack.enter_async_context(client((url,)))
        node = Node(url, folder, daemon, runtime, rest)
        house = House(node, nats, buses[2], disk / "checkpoints")
        worker = WorkerSettings(
            node=NODE,
            state=folder / "worker",
            checkpoints=disk / "checkpoints",
            containerd=daemon.socket,
            bus=settings,
        )
        await stack.enter_async_context(
            worker_app.serving(worker, buses[1], observer=house.observe)
        )
        yield house


# the disk


@pytest.mark.parametrize("step", ["dump", "seal"])
async def test_the_disk_fills_up(house: House, step: str) -> None:
    async with counting(house.node, "holder", HOLDER, python=True) as running:
        house.trap(step, house.fill_the_disk)
        why = await failure(house.node, checkpoint_of(running))
        assert (why.reason, why.step) == (reasons.DISK_FULL, step)
        assert "Free space" in why.advice
        await counts_on(house.node, running)
        house.nothing_lies_aside()
        house.ballast.unlink()
        await gone_round(house, "holder")
        await counts_on(house.node, running)


async def test_the_changed_files_do_not_fit(house: House) -> None:
    writer = counter("dd if=/dev/zero of=/big bs=1M count=80")
    async with counting(house.node, "writer", writer) as running:
        house.leave_room(72 * MIB)
        why = await failure(house.node, checkpoint_of(running))
        assert why.reason == reasons.DISK_FULL
        await counts_on(house.node, running)
        house.nothing_lies_aside()
        house.ballast.unlink()


async def gone_round(house: House, container: str) -> None:
    """It can be checkpointed and restored after all."""
    checkpoint = await house.node.checkpoint(container)
    assert house.is_durable(checkpoint.id)
    await house.node.restore(checkpoint.id)
    house.store.delete(checkpoint.id)


# containerd


async def test_containerd_dies_during_a_checkpoint_and_comes_back(house: House) -> None:
    async with counting(house.node, "counter") as running:
        sprung = house.trap("dump", lambda: house.signal_containerd(signal.SIGKILL))
        asked = await house.node.client.request(checkpoint_of(running))
        action = await ended_after_restart(house, asked, sprung)
        assert isinstance(action.result, Checkpointed)
        assert house.is_durable(action.result.checkpoint.id)
        await house.node.restore(action.result.checkpoint.id)
        await counts_on(house.node, running)


async def test_containerd_dies_during_a_restore_and_comes_back(house: House) -> None:
    async with counting(house.node, "counter") as running:
        checkpoint = (await house.node.checkpoint("counter")).id
        sprung = house.trap("start", lambda: house.signal_containerd(signal.SIGKILL))
        asked = await house.node.client.request(RestoreRequest(checkpoint=checkpoint))
        await ended_after_restart(house, asked, sprung)
        assert house.is_durable(checkpoint)
        await counts_on(house.node, running)


async def ended_after_restart(
    house: House, asked: Action, sprung: Callable[[], Awaitable[None]]
) -> Action:
    """It fails once, is tried again by itself, and succeeds."""
    await sprung()
    await house.node.daemon.kill()
    await house.node.daemon.start()
    action = await house.node.client.ended(asked.id)
    await ready(house)
    assert action.state is ActionState.COMPLETED, action.failure
    assert {one.reason for one in action.earlier_failures} == {reasons.RUNTIME_UNAVAILABLE}
    return action


async def test_containerd_is_away_for_good(house: House) -> None:
    async with counting(house.node, "counter") as running:
        await house.node.daemon.stop()
        try:
            why = await failure(
                house.node, msgspec.structs.replace(checkpoint_of(running), timeout=2.0)
            )
        finally:
            await house.node.daemon.start()
        await ready(house)
        assert why.reason in {reasons.RUNTIME_UNAVAILABLE, reasons.DEADLINE_EXCEEDED}
        await counts_on(house.node, running)


async def ready(house: House) -> None:
    """The node has told, with a heartbeat, that it takes jobs again."""
    async with asyncio.timeout(60):
        while not (await house.node.client.node(NODE)).ready:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)


# NATS


async def test_nats_is_away_while_a_job_is_done(house: House) -> None:
    """So long that it hands out the job again, which must not be done again."""
    node = house.node
    async with counting(node, "counter") as running:
        sprung = house.trap("dump", lambda: house.signal_containerd(signal.SIGSTOP))
        action = await node.client.request(checkpoint_of(running))
        await sprung()
        await house.nats.stop()
        house.signal_containerd(signal.SIGCONT)
        await durable(house, action.id)
        await asyncio.sleep(2 * ACK_WAIT)  # as a minute is to the usual half of one
        await house.nats.start()
        ended = await node.client.ended(action.id)
        assert ended.state is ActionState.COMPLETED, ended.failure
        assert ended.attempt == 1
        await node.restore(action.id)
        await counts_on(node, running)


async def durable(house: House, checkpoint: str) -> None:
    async with asyncio.timeout(60):
        while checkpoint not in house.store.checkpoints():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


async def test_a_job_that_comes_twice_is_done_once(house: House) -> None:
    node = house.node
    async with counting(node, "counter") as running:
        sprung = house.trap("dump", lambda: house.signal_containerd(signal.SIGSTOP))
        action = await node.client.request(checkpoint_of(running))
        await sprung()
        await publish_again(house, action, "while it is at work")
        house.signal_containerd(signal.SIGCONT)
        first = await node.client.ended(action.id)
        assert first.state is ActionState.COMPLETED, first.failure
        await node.restore(action.id)
        await publish_again(house, action, "when it has ended")
        await counts_on(node, running)
        await node.checkpoint("counter")  # all that came before is done
        assert await node.client.action(action.id) == first


async def publish_again(house: House, action: Action, why: str) -> None:
    job = Job(
        action=action.id,
        attempt=1,
        node=NODE,
        order=action.order,
        deadline=action.deadline,
    )
    await house.bus.publish(job_subject(NODE, "checkpoint"), job, dedupe=f"{job.id} {why}")


async def test_messages_that_are_no_jobs_are_dropped(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    subject = job_subject(NODE, "checkpoint")
    connection = await nats_client.connect(house.nats.url)
    try:
        stream = connection.jetstream()
        for raw in (b"\xff\x00", b'{"version": 99}', b'{"version": 1, "action": "a"}'):
            await stream.publish(subject, raw)
        with pytest.raises(nats.js.errors.APIError):
            await stream.publish(subject, b" " * (MAX_MESSAGE_BYTES + 65536))
        with pytest.raises(nats.errors.MaxPayloadError):
            await stream.publish(subject, b" " * 2 * MIB)
    finally:
        await connection.close()
    async with counting(house.node, "counter") as running:
        await house.node.checkpoint("counter", leave_running=True)
        await counts_on(house.node, running)
    dropped = [record.message for record in caplog.records if "is dropped" in record.message]
    assert len(dropped) == 3
    assert "only version 1 is known here" in dropped[1]


# several at once


async def test_two_restores_of_one_checkpoint_at_once(house: House) -> None:
    node = house.node
    async with counting(node, "counter") as running:
        checkpoint = (await node.checkpoint("counter")).id
        before = running.lines()
        names = ("left", "right")
        results = await asyncio.gather(*(node.restore(checkpoint, name=name) for name in names))
        for name, result in zip(names, results, strict=True):
            twin = node.workloads.running(name, result.pid)
            lines = await twin.wait_for_more(3)
            assert int(lines[0]) == len(before) + 1
            await twin.remove()
        await node.restore(checkpoint)
        await counts_on(node, running)
