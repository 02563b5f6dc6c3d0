"""Checkpoints over twins, with a fault and with a death at every step: afterwards the container
runs on as before, or it is durably checkpointed and ended (or runs on, when it should).
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kybernate.store import Damaged, read_manifest, verify
from node_worker.containerd.port import (
    RuntimeFailed,
    RuntimeProblem,
    RuntimeUnavailable,
    TaskStatus,
)
from node_worker.executor import Point
from node_worker.gpu.port import GpuBusy, GpuFailed, GpuState
from schemas import reasons
from schemas.messages import Checkpointed
from schemas.orders import CheckpointOrder, Place, only_part
from schemas.pods import PodRecord
from tests.support.acting import Killed, Trouble
from tests.support.workshop import NAMESPACE, Workshop, Wrapped, new_id, target

STEPS = (
    "resolve",
    "preflight",
    "stage",
    "lock",
    "gpu",
    "pause",
    "dump",
    "rootfs",
    "hash",
    "seal",
    "release",
)
SUSPEND_STEPS = ("resolve", "preflight", "lock", "gpu", "pause", "record")
COMMITTED = {"seal", "release"}
DO_POINTS = (Point.BEFORE_DO, Point.DONE, Point.DONE_RECORDED)
UNDO_POINTS = (Point.BEFORE_UNDO, Point.UNDONE, Point.UNDONE_RECORDED)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    shop = Workshop(tmp_path)
    yield shop
    shop.close()


def order(*, leave_running: bool = False, place: Place = Place.DISK) -> CheckpointOrder:
    return CheckpointOrder(
        parts=only_part(target()), checkpoint=new_id(), leave_running=leave_running, place=place
    )


async def assert_sound(shop: Workshop, wanted: CheckpointOrder, *, committed: bool) -> None:
    """The failure rule."""
    assert shop.leftovers() == []
    durable = wanted.checkpoint in shop.store.checkpoints()
    assert durable == committed
    if committed:
        folder = shop.store.folder(wanted.checkpoint)
        verify(folder, read_manifest(folder))
    if committed and wanted.ends_pod:  # what has ended is deleted by the CRI plugin
        task = await shop.task()
        assert task
        assert task.status is TaskStatus.STOPPED
    elif committed and not wanted.leave_running:
        assert await shop.task() is None
    else:
        assert await shop.runs()


@pytest.mark.parametrize("leave_running", [False, True])
async def test_a_checkpoint(shop: Workshop, leave_running: bool) -> None:  # noqa: FBT001
    pid = await shop.start(gpu=True)
    wanted = order(leave_running=leave_running)
    outcome = await shop.run(wanted)
    await assert_sound(shop, wanted, committed=True)
    assert isinstance(outcome.result, Checkpointed)
    manifest = read_manifest(shop.store.folder(wanted.checkpoint))
    assert outcome.result.checkpoint.left_running == leave_running
    assert outcome.result.checkpoint.size == manifest.size > 0
    (part,) = manifest.parts
    assert [process.pid for process in part.gpu_processes] == [1]
    assert part.container.image == "counter:1"
    assert [time.step for time in manifest.timings] == list(STEPS[:-2])
    assert shop.gpu.states[pid] is (GpuState.RUNNING if leave_running else GpuState.CHECKPOINTED)


@pytest.mark.parametrize("failures", [3, 100])
async def test_processes_that_come_and_go_faster_than_runc_freezes_are_paused_again(
    shop: Workshop, failures: int
) -> None:
    await shop.start(gpu=True)
    wanted = order()
    for nth in range(1, failures + 1):
        error = RuntimeFailed("Pause: OCI runtime pause failed: unable to freeze")
        shop.runtime.fail("pause", error, nth=nth)
    outcome = await shop.run(wanted)
    committed = failures == 3
    await assert_sound(shop, wanted, committed=committed)
    assert (outcome.failure is None) == committed


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("leave_running", [False, True])
async def test_a_step_fails(
    shop: Workshop,
    step: str,
    moment: str,
    leave_running: bool,  # noqa: FBT001
) -> None:
    await shop.start(gpu=True)
    wanted = order(leave_running=leave_running)
    error = Trouble("trouble")
    if step == "release":  # repeated until it succeeds: once is enough
        shop.runtime.fail("delete_task", RuntimeFailed("trouble"))
    outcome = await shop.run(
        wanted,
        actor=lambda actor: (
            actor if step == "release" else Wrapped(actor, f"do {step}", moment, error)
        ),
    )
    committed = step == "release" or (step, moment) == ("seal", "after")
    await assert_sound(shop, wanted, committed=committed)
    assert (outcome.failure is None) == committed
    if outcome.failure is not None:
        assert outcome.failure.step == step


@pytest.mark.parametrize("point", DO_POINTS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("leave_running", [False, True])
async def test_the_worker_dies(
    shop: Workshop,
    step: str,
    point: Point,
    leave_running: bool,  # noqa: FBT001
) -> None:
    await shop.start(gpu=True)
    wanted = order(leave_running=leave_running)

    def kill(at: str, when: Point) -> None:
        if (at, when) == (step, point):
            raise Killed

    outcome = await shop.dies_and_recovers(wanted, kill)
    committed = step == "release" or (step == "seal" and point is not Point.BEFORE_DO)
    await assert_sound(shop, wanted, committed=committed)
    assert outcome.settled
    if not committed:
        assert outcome.failure is not None
        assert outcome.failure.reason == reasons.WORKER_RESTARTED
        assert outcome.failure.retriable


@pytest.mark.parametrize("point", UNDO_POINTS)
@pytest.mark.parametrize("step", STEPS[:-1])
async def test_the_worker_dies_on_the_way_back(shop: Workshop, step: str, point: Point) -> None:
    await shop.start(gpu=True)
    wanted = order()

    def fail_then_kill(at: str, when: Point) -> None:
        if (at, when) == ("seal", Point.BEFORE_DO):
            raise Trouble("trouble")
        if (at, when) == (step, point):
            raise Killed

    outcome = await shop.dies_and_recovers(wanted, fail_then_kill)
    await assert_sound(shop, wanted, committed=False)
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.INTERNAL


@pytest.mark.parametrize("point", DO_POINTS)
@pytest.mark.parametrize("step", SUSPEND_STEPS)
async def test_the_worker_dies_while_suspending(shop: Workshop, step: str, point: Point) -> None:
    pid = await shop.start(gpu=True)
    wanted = order(place=Place.MEMORY)

    def kill(at: str, when: Point) -> None:
        if (at, when) == (step, point):
            raise Killed

    await shop.dies_and_recovers(wanted, kill)
    task = await shop.task()
    assert task is not None
    if step == "record" and point is not Point.BEFORE_DO:
        assert shop.ledger.sleeper(wanted.checkpoint) is not None
        assert (task.status, shop.gpu.states[pid]) == (TaskStatus.PAUSED, GpuState.CHECKPOINTED)
    else:
        assert shop.ledger.sleeper(wanted.checkpoint) is None
        assert await shop.runs()


RUNTIME_CALLS = ("container", "task", "pids", "snapshot", "mounts", "pause", "checkpoint")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", RUNTIME_CALLS)
async def test_containerd_refuses_a_call(
    shop: Workshop,
    call: str,
    after: bool,  # noqa: FBT001
) -> None:
    await shop.start()
    wanted = order()
    shop.runtime.fail(call, RuntimeFailed("no"), after=after)
    outcome = await shop.run(wanted)
    reported = outcome.failure is not None
    if call in {"container", "task", "pids", "snapshot", "mounts"} and after:
        assert not reported, "the twin ignores what only reads"
        return
    assert reported
    await assert_sound(shop, wanted, committed=False)


async def test_containerd_goes_away_in_the_dump_and_comes_back(shop: Workshop) -> None:
    await shop.start()
    wanted = order()
    left = 3

    def away(step: str, point: Point) -> None:
        nonlocal left
        if (step, point) == ("dump", Point.BEFORE_DO):
            shop.runtime.down()
        elif step == "resolve" and point is Point.BEFORE_UNDO:
            left -= 1
        elif (step, point) == ("dump", Point.UNDONE_RECORDED):
            shop.runtime.up()

    outcome = await shop.run(wanted, observer=away)
    await assert_sound(shop, wanted, committed=False)
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.RUNTIME_UNAVAILABLE
    assert outcome.failure.retriable


async def test_containerd_is_gone_for_good_and_comes_back_later(shop: Workshop) -> None:
    await shop.start()
    job = shop.job(order())

    def away(step: str, point: Point) -> None:
        if (step, point) == ("dump", Point.BEFORE_DO):
            shop.runtime.down()

    outcome = await shop.run(job, observer=away)
    assert not outcome.settled
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.UNDO_FAILED
    shop.runtime.up()
    assert (await shop.recover(job)).settled
    assert await shop.runs()


async def test_criu_says_what_it_cannot_dump(shop: Workshop) -> None:
    await shop.start()
    log = "(00.01) Error (criu/files.c:1): Can't dump file 3 of that type [20666] (x)\n"
    shop.runtime.make_undumpable("c1", log)
    wanted = order()
    outcome = await shop.run(wanted)
    await assert_sound(shop, wanted, committed=False)
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.CANNOT_BE_CHECKPOINTED
    assert "criu:" in outcome.failure.message
    assert outcome.failure.advice


async def test_a_gpu_that_stays_busy(shop: Workshop) -> None:
    await shop.start(gpu=True)
    shop.gpu.fail("lock", GpuBusy("a kernel runs"))
    wanted = order()
    outcome = await shop.run(wanted)
    await assert_sound(shop, wanted, committed=False)
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.retriable) == (reasons.GPU_BUSY, True)


async def test_a_gpu_that_fails(shop: Workshop) -> None:
    await shop.start(gpu=True)
    shop.gpu.fail("checkpoint", GpuFailed("out of memory", code="CUDA_ERROR_OUT_OF_MEMORY"))
    wanted = order()
    outcome = await shop.run(wanted)
    await assert_sound(shop, wanted, committed=False)
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.GPU_FAILED


async def test_an_unknown_container(shop: Workshop) -> None:
    outcome = await shop.run(order())
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.UNKNOWN_CONTAINER


@pytest.mark.parametrize("how", ["ended", "paused"])
async def test_a_container_that_does_not_run(shop: Workshop, how: str) -> None:
    await shop.start()
    if how == "paused":
        await shop.runtime.pause(NAMESPACE, "c1")
    else:
        await shop.end()
    outcome = await shop.run(order())
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.NOT_RUNNING
    task = await shop.task()
    assert (task.status if task else None) == (TaskStatus.PAUSED if how == "paused" else None)


async def test_a_checkpoint_is_never_overwritten(shop: Workshop) -> None:
    await shop.start()
    wanted = order(leave_running=True)
    await shop.run(wanted)
    before = read_manifest(shop.store.folder(wanted.checkpoint))
    outcome = await shop.run(wanted)
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.ALREADY_EXISTS
    assert read_manifest(shop.store.folder(wanted.checkpoint)) == before
    assert await shop.runs()


async def test_another_task_of_the_name_is_left_alone(shop: Workshop) -> None:
    """The worker died behind the commit; meanwhile somebody started the container anew."""
    await shop.start()
    wanted = order()
    job = shop.job(wanted)

    def kill(step: str, point: Point) -> None:
        if (step, point) == ("release", Point.BEFORE_DO):
            raise Killed

    with pytest.raises(Killed):
        await shop.run(job, observer=kill)
    await shop.end()
    await shop.runtime.delete_container(NAMESPACE, "c1")
    pid = await shop.start()
    outcome = await shop.recover(job)
    assert outcome.settled
    task = await shop.task()
    assert task is not None
    assert (task.pid, task.status) == (pid, TaskStatus.RUNNING)


async def test_a_lost_answer_to_the_dump(shop: Workshop) -> None:
    await shop.start()
    wanted = order()
    shop.runtime.fail("checkpoint", RuntimeUnavailable("gone"), after=True)
    await shop.run(wanted)
    await assert_sound(shop, wanted, committed=False)


async def test_damage_is_what_verify_finds(shop: Workshop) -> None:
    await shop.start()
    folder = shop.store.folder(await shop.checkpointed())
    (folder / "containers/c1/images/extra.img").write_bytes(b"x")
    with pytest.raises(Damaged):
        verify(folder, read_manifest(folder))


def order_of_a_pod() -> CheckpointOrder:
    """With its pod, which is to go."""
    left = PodRecord(namespace="default", name="counter", uid="u", node="node-1", template="{}")
    return msgspec.structs.replace(order(), pod=left)


async def test_a_pod_that_is_to_go_stands_still_until_kubelet_has_ended_it(shop: Workshop) -> None:
    await shop.start(gpu=True)
    wanted = order_of_a_pod()
    seen: list[TaskStatus] = []

    async def kubelet() -> None:
        while not any(event.result for event in shop.told):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        task = await shop.task()
        assert task
        seen.append(task.status)
        assert wanted.checkpoint in shop.store.checkpoints()
        await shop.runtime.kill(NAMESPACE, "c1", 9)

    outcome, _ = await asyncio.gather(shop.run(wanted), kubelet())
    await assert_sound(shop, wanted, committed=True)
    assert seen == [TaskStatus.PAUSED]
    assert [event.result for event in shop.told if event.result] == [outcome.result]
    assert not any(event.note for event in shop.told)


async def test_a_pod_that_nobody_ends_is_ended_here_and_that_is_told(shop: Workshop) -> None:
    await shop.start(gpu=True)
    wanted = order_of_a_pod()
    outcome = await shop.run(wanted)
    await assert_sound(shop, wanted, committed=True)
    assert outcome.result is not None
    [remark] = [event for event in shop.told if event.note]
    assert remark.step == "retire"
    assert "was not ended" in remark.note


@pytest.mark.parametrize("point", DO_POINTS)
async def test_the_worker_dies_while_a_pod_is_to_go(shop: Workshop, point: Point) -> None:
    await shop.start(gpu=True)
    wanted = order_of_a_pod()

    def kill(at: str, when: Point) -> None:
        if (at, when) == ("retire", point):
            raise Killed

    outcome = await shop.dies_and_recovers(wanted, kill)
    await assert_sound(shop, wanted, committed=True)
    assert outcome.settled
    assert any(event.result for event in shop.told) or point is not Point.BEFORE_DO


@pytest.mark.parametrize("trouble", [RuntimeUnavailable("away"), RuntimeFailed("trouble")])
async def test_what_cannot_be_looked_at_is_looked_at_again(
    shop: Workshop, trouble: RuntimeProblem
) -> None:
    await shop.start()
    wanted = order_of_a_pod()
    shop.runtime.fail("task", trouble, nth=2)
    assert (await shop.run(wanted)).settled
    await assert_sound(shop, wanted, committed=True)
