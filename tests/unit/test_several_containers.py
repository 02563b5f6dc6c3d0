"""Several containers as one checkpoint, over twins: whatever happens, both run on as before, or
both are durably checkpointed; and each comes back from its own part.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from kybernate.store import read_manifest, verify
from node_worker.claims import Claims
from node_worker.containerd.port import DumpOptions, RuntimeFailed
from node_worker.executor import Point
from node_worker.gpu.port import GpuFailed, GpuState
from schemas import reasons
from schemas.messages import Checkpointed
from schemas.orders import CheckpointOrder, Part, RestoreOrder
from tests.support.acting import Killed, Trouble
from tests.support.workshop import NAMESPACE, Workshop, new_id, target

NAMES = ("c1", "c2")
STEPS = (
    *("resolve", "preflight", "stage", "lock", "gpu", "pause"),
    *("dump", "rootfs", "hash", "seal", "release"),
)
DO_POINTS = (Point.BEFORE_DO, Point.DONE, Point.DONE_RECORDED)
UNDO_POINTS = (Point.BEFORE_UNDO, Point.UNDONE, Point.UNDONE_RECORDED)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    shop = Workshop(tmp_path)
    for name in NAMES:
        await shop.start(name, gpu=True)
    yield shop
    shop.close()


def order(*names: str, leave_running: bool = False, independent: bool = True) -> CheckpointOrder:
    parts = tuple(Part(name=f"the-{name}", target=target(name)) for name in names or NAMES)
    return CheckpointOrder(
        parts=parts,
        checkpoint=new_id(),
        leave_running=leave_running,
        independent_gpu_processes=independent,
    )


async def assert_sound(shop: Workshop, wanted: CheckpointOrder, *, committed: bool) -> None:
    """The failure rule, for both."""
    assert shop.leftovers() == []
    assert (wanted.checkpoint in shop.store.checkpoints()) == committed
    if committed:
        folder = shop.store.folder(wanted.checkpoint)
        verify(folder, read_manifest(folder))
    for name in NAMES:
        if committed and not wanted.leave_running:
            assert await shop.task(name) is None
        else:
            assert await shop.runs(name)


@pytest.mark.parametrize("leave_running", [False, True])
async def test_one_checkpoint_holds_both(shop: Workshop, leave_running: bool) -> None:  # noqa: FBT001
    wanted = order(leave_running=leave_running)
    outcome = await shop.run(wanted)
    await assert_sound(shop, wanted, committed=True)
    assert isinstance(outcome.result, Checkpointed)
    assert [part.name for part in outcome.result.checkpoint.parts] == ["the-c1", "the-c2"]
    manifest = read_manifest(shop.store.folder(wanted.checkpoint))
    for part, name in zip(manifest.parts, NAMES, strict=True):
        assert part.target == target(name)
        assert part.container.labels == {"app": name}
        assert [process.pid for process in part.gpu_processes] == [1]
        assert part.memory_bytes > 0
    folders = {Path(entry.path).parts[:2] for entry in manifest.files}
    assert folders == {("containers", "the-c1"), ("containers", "the-c2")}


async def test_both_stand_still_before_the_first_is_dumped(shop: Workshop) -> None:
    states: list[tuple[str, set[GpuState]]] = []

    def look(step: str, point: Point) -> None:
        if point is Point.DONE:
            states.append((step, set(shop.gpu.states.values())))

    await shop.run(order(), observer=look)

    assert dict(states)["lock"] == {GpuState.LOCKED}
    assert dict(states)["gpu"] == {GpuState.CHECKPOINTED}
    held = [call for call in shop.runtime.calls if call in {"pause", "checkpoint"}]
    assert held == ["pause", "pause", "checkpoint", "checkpoint"]


@pytest.mark.parametrize("point", DO_POINTS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("leave_running", [False, True])
async def test_the_worker_dies(
    shop: Workshop,
    step: str,
    point: Point,
    leave_running: bool,  # noqa: FBT001
) -> None:
    wanted = order(leave_running=leave_running)

    def kill(at: str, when: Point) -> None:
        if (at, when) == (step, point):
            raise Killed

    outcome = await shop.dies_and_recovers(wanted, kill)
    committed = step == "release" or (step == "seal" and point is not Point.BEFORE_DO)
    await assert_sound(shop, wanted, committed=committed)
    assert outcome.settled


@pytest.mark.parametrize("point", UNDO_POINTS)
@pytest.mark.parametrize("step", STEPS[:-1])
async def test_the_worker_dies_on_the_way_back(shop: Workshop, step: str, point: Point) -> None:
    wanted = order()

    def fail_then_kill(at: str, when: Point) -> None:
        if (at, when) == ("seal", Point.BEFORE_DO):
            raise Trouble("trouble")
        if (at, when) == (step, point):
            raise Killed

    await shop.dies_and_recovers(wanted, fail_then_kill)
    await assert_sound(shop, wanted, committed=False)


@pytest.mark.parametrize("call", ["pause", "checkpoint", "snapshot"])
@pytest.mark.parametrize("nth", [1, 2])
async def test_what_one_refuses_the_other_is_spared(shop: Workshop, call: str, nth: int) -> None:
    shop.runtime.fail(call, RuntimeFailed("no"), nth=nth)
    wanted = order()
    outcome = await shop.run(wanted)
    await assert_sound(shop, wanted, committed=False)
    assert outcome.failure is not None


async def test_a_dump_that_fails_does_not_wait_for_the_others(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = "(00.01) Error (criu/files.c:1): Can't dump file 3 of that type [20666] (x)\n"
    shop.runtime.make_undumpable("c1", log)
    checkpoint, ended = shop.runtime.checkpoint, []

    async def slow(namespace: str, id: str, options: DumpOptions, *, timeout: float) -> None:
        try:
            await asyncio.sleep(0 if id == "c1" else 3600)
        finally:
            ended.append(id)
        await checkpoint(namespace, id, options, timeout=timeout)

    monkeypatch.setattr(shop.runtime, "checkpoint", slow)
    wanted = order()
    outcome = await shop.run(wanted)
    await assert_sound(shop, wanted, committed=False)
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.CANNOT_BE_CHECKPOINTED
    assert outcome.failure.message.startswith("container the-c1: ")
    assert ended == ["c1", "c2"]


async def test_a_gpu_process_that_fails_gives_the_other_back(shop: Workshop) -> None:
    shop.gpu.fail("checkpoint", GpuFailed("no", code="CUDA_ERROR_UNKNOWN"))
    wanted = order()
    await shop.run(wanted)
    await assert_sound(shop, wanted, committed=False)


async def test_an_end_that_fails_is_tried_again_for_both(shop: Workshop) -> None:
    shop.runtime.fail("delete_task", RuntimeFailed("no"))
    wanted = order()
    await shop.run(wanted)
    await assert_sound(shop, wanted, committed=True)


async def test_cuda_in_two_containers_is_refused_unless_it_is_vouched_for(shop: Workshop) -> None:
    wanted = order(independent=False)
    outcome = await shop.run(wanted)
    await assert_sound(shop, wanted, committed=False)
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.GPU_SHARED_MEMORY


async def test_one_that_is_not_there_stands_in_the_way_of_both(shop: Workshop) -> None:
    outcome = await shop.run(order("c1", "c3"))
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.UNKNOWN_CONTAINER
    assert await shop.runs("c1")


async def test_an_obstacle_names_its_container(shop: Workshop) -> None:
    task = shop.runtime.task_of(NAMESPACE, "c2")
    task.stdio = msgspec.structs.replace(task.stdio, terminal=True)
    outcome = await shop.run(order())
    assert outcome.failure is not None
    assert "container the-c2: " in outcome.failure.message


async def test_each_comes_back_from_its_own_part(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"c1": 1_000_000, "c2": 2_000_000}
    for name, count in counts.items():
        shop.runtime.task_of(NAMESPACE, name)._counted = count
    checkpoint = order()
    await shop.run(checkpoint)
    start = shop.runtime.start_task

    async def start_with_cuda(namespace: str, id: str, *, timeout: float = 60.0) -> int:
        pid = await start(namespace, id, timeout=timeout)
        shop.gpu.add(pid, GpuState.CHECKPOINTED)
        return pid

    monkeypatch.setattr(shop.runtime, "start_task", start_with_cuda)
    for name in NAMES:
        back = RestoreOrder(
            checkpoint=checkpoint.checkpoint, part=f"the-{name}", target=target(name)
        )
        outcome = await shop.run(back)
        assert outcome.result is not None, outcome.failure
        assert await shop.runs(name)
        counted = shop.runtime.task_of(NAMESPACE, name).count()
        assert counts[name] <= counted < counts[name] + 1_000_000


async def test_a_part_that_the_checkpoint_does_not_have(shop: Workshop) -> None:
    checkpoint = order()
    await shop.run(checkpoint)
    outcome = await shop.run(
        RestoreOrder(checkpoint=checkpoint.checkpoint, part="c1", target=target("c1"))
    )
    assert outcome.failure is not None
    assert outcome.failure.reason == reasons.INVALID_REQUEST
    assert "the-c1, the-c2" in outcome.failure.message


def test_every_container_of_a_checkpoint_is_claimed() -> None:
    claims = Claims()
    assert claims.take("first", order()) is None
    for name in NAMES:
        refused = claims.take("second", order(name))
        assert refused is not None
        assert refused.reason == reasons.CONTAINER_BUSY
        assert name in refused.message
    assert claims.take("third", order("c3")) is None
