"""Restores, wakes and deletions over twins, with a fault and with a death at every step:
afterwards the container runs on from its checkpoint, or everything is as it was before.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node_worker.containerd.port import RuntimeFailed, RuntimeUnavailable, TaskStatus
from node_worker.executor import Point
from node_worker.gpu.port import GpuFailed, GpuState, ProcessGone
from node_worker.resumed import CRIU_CONFIG
from schemas import reasons
from schemas.failures import Failure
from schemas.messages import Deleted, Restored
from schemas.orders import CheckpointOrder, DeleteOrder, Place, RestoreOrder, only_part
from tests.support.acting import Killed, Trouble
from tests.support.fake_gpu import OTHER_UUID, facts
from tests.support.workshop import (
    IMAGE,
    NAMESPACE,
    SNAPSHOTTER,
    Workshop,
    Wrapped,
    new_id,
    target,
)

STEPS = (
    "resolve",
    "fit",
    "verify",
    "prepare",
    "create",
    "memory",
    "start",
    "gpu",
    "settle",
)
WAKE_STEPS = ("resolve", "resume", "gpu", "settle")
DO_POINTS = (Point.BEFORE_DO, Point.DONE, Point.DONE_RECORDED)
UNDO_POINTS = (Point.BEFORE_UNDO, Point.UNDONE, Point.UNDONE_RECORDED)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    shop = Workshop(tmp_path)
    yield shop
    shop.close()


async def remove(shop: Workshop) -> None:
    """Everything that containerd still has of the container."""
    container = await shop.runtime.container(NAMESPACE, "c1")
    await shop.runtime.delete_container(NAMESPACE, "c1")
    await shop.runtime.remove_snapshot(NAMESPACE, SNAPSHOTTER, container.snapshot_key)


async def checkpointed(shop: Workshop, *, removed: bool = False) -> str:
    await shop.start()
    checkpoint = await shop.checkpointed()
    if removed:
        await remove(shop)
    return checkpoint


def order(
    checkpoint: str, *, name: str = "c1", part: str = "c1", place: Place = Place.DISK
) -> RestoreOrder:
    return RestoreOrder(checkpoint=checkpoint, part=part, target=target(name), place=place)


class Before:
    """What containerd has, to be the same afterwards."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop

    async def read(self) -> object:
        runtime = self.shop.runtime
        containers = await runtime.containers(NAMESPACE)
        keys = [container.snapshot_key for container in containers]
        return containers, [await self.shop.has_snapshot(key) for key in keys]


async def snapshots_are_in_use(shop: Workshop) -> bool:
    """Whether every snapshot but the image's belongs to a container."""
    keys = {container.snapshot_key for container in await shop.runtime.containers(NAMESPACE)}
    known = {key for _, _, key in shop.runtime._snapshots._known}
    return known - {IMAGE} == keys


@pytest.mark.parametrize("removed", [False, True])
async def test_a_restore(shop: Workshop, removed: bool) -> None:  # noqa: FBT001
    checkpoint = await checkpointed(shop, removed=removed)
    outcome = await shop.run(order(checkpoint))
    assert isinstance(outcome.result, Restored), outcome.failure
    task = await shop.task()
    assert task is not None
    assert (outcome.result.pid, task.status) == (task.pid, TaskStatus.RUNNING)
    assert shop.runtime.task_of(NAMESPACE, "c1").restored_from is not None
    assert await snapshots_are_in_use(shop)
    assert shop.leftovers() == []
    container = await shop.runtime.container(NAMESPACE, "c1")
    assert container.image == "counter:1"
    assert container.labels["app"] == "c1"
    options = Path(container.annotations[CRIU_CONFIG]).read_text()
    assert "tcp-established" in options
    (loopback,) = container.oci["hooks"]["createRuntime"]
    assert loopback["args"][-1].endswith("loopback.py")


async def test_round_and_round(shop: Workshop) -> None:
    await shop.start()
    for _ in range(3):
        checkpoint = await shop.checkpointed()
        outcome = await shop.run(order(checkpoint))
        assert outcome.result is not None, outcome.failure
    container = await shop.runtime.container(NAMESPACE, "c1")
    assert len(container.oci["hooks"]["createRuntime"]) == 1
    assert await snapshots_are_in_use(shop)


async def test_under_another_name_beside_the_original(shop: Workshop) -> None:
    await shop.start()
    checkpoint = await shop.checkpointed(leave_running=True)
    outcome = await shop.run(order(checkpoint, name="copy"))
    assert outcome.result is not None, outcome.failure
    assert await shop.runs("c1")
    assert await shop.runs("copy")
    copy = await shop.runtime.container(NAMESPACE, "copy")
    assert copy.oci["linux"]["cgroupsPath"] == "/pods/copy"


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS[:-2])
@pytest.mark.parametrize("removed", [False, True])
async def test_a_step_fails(
    shop: Workshop,
    step: str,
    moment: str,
    removed: bool,  # noqa: FBT001
) -> None:
    checkpoint = await checkpointed(shop, removed=removed)
    before = await Before(shop).read()
    outcome = await shop.run(
        order(checkpoint),
        actor=lambda actor: Wrapped(actor, f"do {step}", moment, Trouble("trouble")),
    )
    assert outcome.failure is not None
    assert outcome.failure.step == step
    await assert_as_before(shop, before)
    again = await shop.run(order(checkpoint))
    assert again.result is not None, again.failure


async def assert_as_before(shop: Workshop, before: object) -> None:
    assert await Before(shop).read() == before
    assert await shop.task() is None
    assert await snapshots_are_in_use(shop)
    assert shop.leftovers() == []


@pytest.mark.parametrize("point", DO_POINTS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("removed", [False, True])
async def test_the_worker_dies(
    shop: Workshop,
    step: str,
    point: Point,
    removed: bool,  # noqa: FBT001
) -> None:
    checkpoint = await checkpointed(shop, removed=removed)
    before = await Before(shop).read()

    def kill(at: str, when: Point) -> None:
        if (at, when) == (step, point):
            raise Killed

    outcome = await shop.dies_and_recovers(order(checkpoint), kill)
    assert outcome.settled
    if step in {"gpu", "settle"}:  # without a GPU, nothing was missing when the step began
        assert outcome.result is not None
        assert await shop.runs()
        assert await snapshots_are_in_use(shop)
        assert shop.leftovers() == []
    else:
        assert outcome.failure is not None
        assert outcome.failure.reason == reasons.WORKER_RESTARTED
        await assert_as_before(shop, before)


@pytest.mark.parametrize("point", UNDO_POINTS)
@pytest.mark.parametrize("step", STEPS[:-1])
async def test_the_worker_dies_on_the_way_back(shop: Workshop, step: str, point: Point) -> None:
    checkpoint = await checkpointed(shop)
    before = await Before(shop).read()
    shop.runtime.fail("start_task", RuntimeFailed("trouble"))

    def kill(at: str, when: Point) -> None:
        if (at, when) == (step, point):
            raise Killed

    outcome = await shop.dies_and_recovers(order(checkpoint), kill)
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.RESTORE_FAILED
    await assert_as_before(shop, before)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "call", ["prepare_snapshot", "replace_container", "create_task", "start_task"]
)
async def test_containerd_refuses_a_call(
    shop: Workshop,
    call: str,
    after: bool,  # noqa: FBT001
) -> None:
    checkpoint = await checkpointed(shop)
    before = await Before(shop).read()
    shop.runtime.fail(call, RuntimeUnavailable("gone"), after=after)
    outcome = await shop.run(order(checkpoint))
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.RUNTIME_UNAVAILABLE
    await assert_as_before(shop, before)


# what is refused before anything is touched


async def refused(shop: Workshop, wanted: RestoreOrder) -> Failure:
    before = await Before(shop).read()
    outcome = await shop.run(wanted)
    assert outcome.failure is not None
    assert outcome.failure.step in {"resolve", "fit", "verify"}
    assert await Before(shop).read() == before
    assert shop.leftovers() == []
    return outcome.failure


async def test_no_such_checkpoint(shop: Workshop) -> None:
    assert (await refused(shop, order(new_id()))).reason == reasons.CHECKPOINT_MISSING


async def test_the_container_runs(shop: Workshop) -> None:
    await shop.start()
    checkpoint = await shop.checkpointed(leave_running=True)
    assert (await refused(shop, order(checkpoint))).reason == reasons.ALREADY_RUNNING
    assert await shop.runs()


async def test_another_container_has_the_name(shop: Workshop) -> None:
    checkpoint = await checkpointed(shop)
    await shop.start("other")
    await shop.end("other")
    failure = await refused(shop, order(checkpoint, name="other"))
    assert failure.reason == reasons.ALREADY_EXISTS


async def test_the_image_is_missing(shop: Workshop) -> None:
    checkpoint = await checkpointed(shop, removed=True)
    await shop.runtime.remove_snapshot(NAMESPACE, SNAPSHOTTER, IMAGE)
    assert (await refused(shop, order(checkpoint))).reason == reasons.IMAGE_MISSING


@pytest.mark.parametrize(
    ("file", "step"),
    [("images/pstree.img", "verify"), ("rootfs.tar", "verify"), ("images/pages-1.img", "memory")],
)
async def test_a_damaged_checkpoint(shop: Workshop, file: str, step: str) -> None:
    """What is interpreted is refused before anything is made of it, memory before it is read."""
    await shop.start()
    await shop.change_root()
    checkpoint = await shop.checkpointed()
    before, ran = await Before(shop).read(), list(shop.runtime.ran)
    damaged = shop.store.folder(checkpoint) / "containers/c1" / file
    raw = bytearray(damaged.read_bytes())
    raw[10] ^= 1
    damaged.write_bytes(raw)
    outcome = await shop.run(order(checkpoint))
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.CHECKPOINT_DAMAGED
    assert outcome.failure.step == step
    assert shop.runtime.ran == ran
    await assert_as_before(shop, before)


async def test_no_fitting_gpu(shop: Workshop) -> None:
    await shop.start(gpu=True)
    checkpoint = await shop.checkpointed()
    shop.gpu.gpus = ()
    assert (await refused(shop, order(checkpoint))).reason == reasons.GPU_MISFIT


# the GPU


async def restored_with_gpu(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint with GPU memory; its restored process has CUDA, checkpointed, as in reality."""
    await shop.start(gpu=True)
    checkpoint = await shop.checkpointed()
    start = shop.runtime.start_task

    async def start_with_cuda(namespace: str, id: str, *, timeout: float = 60.0) -> int:
        pid = await start(namespace, id, timeout=timeout)
        shop.gpu.add(pid, GpuState.CHECKPOINTED)
        return pid

    monkeypatch.setattr(shop.runtime, "start_task", start_with_cuda)
    return checkpoint


async def test_gpu_memory_comes_back(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = await restored_with_gpu(shop, monkeypatch)
    outcome = await shop.run(order(checkpoint))
    assert outcome.result is not None, outcome.failure
    assert await shop.runs()


async def test_onto_another_gpu(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = await restored_with_gpu(shop, monkeypatch)
    shop.gpu.gpus = (facts(OTHER_UUID),)
    outcome = await shop.run(order(checkpoint))
    assert outcome.result is not None, outcome.failure
    assert list(outcome.notes.pairs.values()) == [OTHER_UUID]


@pytest.mark.parametrize("call", ["restore", "unlock"])
async def test_the_gpu_refuses(shop: Workshop, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    checkpoint = await restored_with_gpu(shop, monkeypatch)
    before = await Before(shop).read()
    shop.gpu.fail(call, GpuFailed("no", code="CUDA_ERROR_UNKNOWN"))
    outcome = await shop.run(order(checkpoint))
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.GPU_FAILED
    await assert_as_before(shop, before)


async def test_a_gpu_process_is_not_found_again(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = await restored_with_gpu(shop, monkeypatch)
    before = await Before(shop).read()

    async def none(namespace: str, id: str) -> tuple[int, ...]:
        return ()

    monkeypatch.setattr(shop.runtime, "pids", none)
    outcome = await shop.run(order(checkpoint))
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.RESTORE_FAILED
    await assert_as_before(shop, before)


async def test_a_gpu_process_ends_before_its_memory_is_back(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = await restored_with_gpu(shop, monkeypatch)
    before = await Before(shop).read()
    for call in ("restore", *["state"] * 20):
        shop.gpu.fail(call, ProcessGone("the process has ended"))
    outcome = await shop.run(order(checkpoint))
    assert outcome.failure is not None
    assert outcome.failure.step == "gpu"
    await assert_as_before(shop, before)


async def test_the_worker_dies_before_the_gpu_is_back(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = await restored_with_gpu(shop, monkeypatch)
    before = await Before(shop).read()

    def kill(step: str, point: Point) -> None:
        if (step, point) == ("gpu", Point.BEFORE_DO):
            raise Killed

    outcome = await shop.dies_and_recovers(order(checkpoint), kill)
    assert outcome.failure is not None
    await assert_as_before(shop, before)


# from memory


async def asleep(shop: Workshop) -> str:
    await shop.start(gpu=True)
    wanted = CheckpointOrder(parts=only_part(target()), checkpoint=new_id(), place=Place.MEMORY)
    assert (await shop.run(wanted)).result is not None
    assert not await shop.runs()
    return wanted.checkpoint


async def test_wakes(shop: Workshop) -> None:
    checkpoint = await asleep(shop)
    outcome = await shop.run(order(checkpoint, place=Place.MEMORY))
    assert isinstance(outcome.result, Restored), outcome.failure
    assert await shop.runs()
    again = await shop.run(order(checkpoint, place=Place.MEMORY))
    assert again.failure is not None
    assert again.failure.reason == reasons.CHECKPOINT_MISSING
    assert await shop.runs()


@pytest.mark.parametrize("call", ["restore", "unlock"])
async def test_sleeps_on_when_the_gpu_refuses(shop: Workshop, call: str) -> None:
    checkpoint = await asleep(shop)
    shop.gpu.fail(call, GpuFailed("no", code="CUDA_ERROR_UNKNOWN"))
    outcome = await shop.run(order(checkpoint, place=Place.MEMORY))
    assert outcome.failure is not None
    await assert_sleeps(shop)
    assert (await shop.run(order(checkpoint, place=Place.MEMORY))).result is not None
    assert await shop.runs()


async def test_a_sleeper_ends_before_its_memory_is_back(shop: Workshop) -> None:
    checkpoint = await asleep(shop)
    for call in ("restore", *["state"] * 20):
        shop.gpu.fail(call, ProcessGone("the process has ended"))
    outcome = await shop.run(order(checkpoint, place=Place.MEMORY))
    assert outcome.failure is not None
    assert (outcome.failure.step, outcome.failure.reason) == ("gpu", ProcessGone.reason)


async def assert_sleeps(shop: Workshop) -> None:
    task = await shop.task()
    assert task is not None
    assert task.status is TaskStatus.PAUSED
    assert shop.gpu.states[task.pid] is GpuState.CHECKPOINTED


@pytest.mark.parametrize("point", DO_POINTS)
@pytest.mark.parametrize("step", WAKE_STEPS)
async def test_the_worker_dies_while_waking(shop: Workshop, step: str, point: Point) -> None:
    checkpoint = await asleep(shop)

    def kill(at: str, when: Point) -> None:
        if (at, when) == (step, point):
            raise Killed

    outcome = await shop.dies_and_recovers(order(checkpoint, place=Place.MEMORY), kill)
    awake = step == "settle" or (step == "gpu" and point is not Point.BEFORE_DO)
    assert (outcome.result is not None) == awake
    assert (shop.ledger.sleeper(checkpoint) is None) == awake
    if awake:
        assert await shop.runs()
    else:
        await assert_sleeps(shop)


# deletions


async def test_deletes(shop: Workshop) -> None:
    checkpoint = await checkpointed(shop)
    outcome = await shop.run(DeleteOrder(checkpoint=checkpoint))
    assert outcome.result == Deleted(checkpoint=checkpoint)
    assert shop.store.checkpoints() == ()
    assert shop.leftovers() == []
    assert (await shop.run(DeleteOrder(checkpoint=checkpoint))).result is not None


async def test_gives_up_what_sleeps(shop: Workshop) -> None:
    checkpoint = await asleep(shop)
    outcome = await shop.run(DeleteOrder(checkpoint=checkpoint))
    assert outcome.result is not None
    assert await shop.task() is None
    assert shop.ledger.sleeper(checkpoint) is None


@pytest.mark.parametrize("point", DO_POINTS)
async def test_the_worker_dies_while_deleting(shop: Workshop, point: Point) -> None:
    checkpoint = await checkpointed(shop)

    def kill(at: str, when: Point) -> None:
        if when is point:
            raise Killed

    outcome = await shop.dies_and_recovers(DeleteOrder(checkpoint=checkpoint), kill)
    there = point is Point.BEFORE_DO
    assert (checkpoint in shop.store.checkpoints()) == there
    assert (outcome.result is None) == there
