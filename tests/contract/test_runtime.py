"""One suite over the twin and over real containerd 1.6, 1.7 and 2: what the port promises."""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from kybernate.embedded import oci
from kybernate.embedded.containerd import PrivateContainerd, private_containerd
from kybernate.embedded.stack import LINES, find_stack
from kybernate.embedded.workload import NAMESPACE, SNAPSHOTTER, Workloads
from node_worker.containerd.client import connect
from node_worker.containerd.port import (
    GC_ROOT_LABEL,
    AlreadyExists,
    Container,
    DumpOptions,
    Image,
    NotFound,
    Packed,
    RestorePaths,
    Runtime,
    RuntimeFailed,
    RuntimeTimedOut,
    RuntimeUnavailable,
    SnapshotKind,
    Stdio,
    TaskStatus,
    WrongState,
)
from tests.support.fake_runtime import FakeRuntime

COUNTER = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done"
NUMBERS = itertools.count()
GC_ROOT = {GC_ROOT_LABEL: "contract"}


class House(Protocol):
    """A runtime and what a test needs around it."""

    runtime: Runtime
    folder: Path

    async def start_counter(self, id: str) -> int: ...
    def stdio(self, id: str) -> Stdio: ...
    def count(self, id: str) -> int: ...
    async def down(self) -> None: ...
    async def up(self) -> None: ...


class TwinHouse:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.twin = FakeRuntime(folder)
        self.runtime: Runtime = self.twin

    async def start_counter(self, id: str) -> int:
        mounts = await self.twin.prepare_snapshot(NAMESPACE, SNAPSHOTTER, id, "", GC_ROOT)
        spec = Packed(type_url=oci.SPEC_TYPE, value=b'{"annotations":{"org.criu.config":"/x"}}')
        await self.twin.create_container(
            NAMESPACE,
            Container(id=id, spec=spec, snapshotter=SNAPSHOTTER, snapshot_key=id),
        )
        await self.twin.create_task(NAMESPACE, id, mounts=mounts, stdio=self.stdio(id))
        return await self.twin.start_task(NAMESPACE, id)

    def stdio(self, id: str) -> Stdio:
        return Stdio(stdout=f"file:///logs/{id}", stderr=f"file:///logs/{id}")

    def count(self, id: str) -> int:
        return self.twin.count(NAMESPACE, id)

    async def down(self) -> None:
        self.twin.down()

    async def up(self) -> None:
        self.twin.up()


class RealHouse:
    def __init__(self, folder: Path, daemon: PrivateContainerd, runtime: Runtime) -> None:
        self.folder = folder
        self.runtime = runtime
        self._daemon = daemon
        self._workloads = Workloads(daemon, runtime)

    async def start_counter(self, id: str) -> int:
        workload = oci.Workload(args=("sh", "-c", COUNTER))
        return (await self._workloads.start_container(id, workload)).pid

    def stdio(self, id: str) -> Stdio:
        output = self._workloads.log(id).as_uri()
        return Stdio(stdout=output, stderr=output)

    def count(self, id: str) -> int:
        lines = self._workloads.running(id, 0).lines()
        return int(lines[-1]) if lines else 0

    async def down(self) -> None:
        await self._daemon.kill()

    async def up(self) -> None:
        await self._daemon.start()


@pytest.fixture(params=["twin", *LINES])
async def house(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[House]:
    if request.param == "twin":
        yield TwinHouse(folder)
        return
    async with (
        private_containerd(find_stack(request.param), folder / "containerd") as daemon,
        connect(daemon.socket) as runtime,
    ):
        yield RealHouse(folder, daemon, runtime)


def paths(house: House) -> tuple[str, str]:
    folder = house.folder / f"dump-{next(NUMBERS)}"
    for part in ("images", "work"):
        (folder / part).mkdir(parents=True)
    return str(folder / "images"), str(folder / "work")


async def dump(house: House, id: str, *, stop: bool) -> RestorePaths:
    images, work = paths(house)
    await house.runtime.checkpoint(
        NAMESPACE, id, DumpOptions(image_path=images, work_path=work, exit=stop)
    )
    if stop:
        await house.runtime.wait_exit(NAMESPACE, id, timeout=30)
    return RestorePaths(image_path=images, work_path=work)


async def restore(house: House, id: str, where: RestorePaths) -> int:
    mounts = await house.runtime.mounts(NAMESPACE, SNAPSHOTTER, id)
    options = (await house.runtime.container(NAMESPACE, id)).runtime_options
    await house.runtime.create_task(
        NAMESPACE, id, mounts=mounts, stdio=house.stdio(id), restore=where, options=options
    )
    return await house.runtime.start_task(NAMESPACE, id)


def names_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


async def eventually(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not wanted():  # noqa: ASYNC110 - a file says nothing
            await asyncio.sleep(0.02)


async def end(house: House, id: str) -> int | None:
    await house.runtime.kill(NAMESPACE, id, signal.SIGKILL, all=True)
    await house.runtime.wait_exit(NAMESPACE, id, timeout=30)
    return await house.runtime.delete_task(NAMESPACE, id)


async def counts_beyond(house: House, id: str, number: int) -> None:
    await eventually(lambda: house.count(id) > number)


async def status(house: House, id: str) -> TaskStatus:
    return (await house.runtime.task(NAMESPACE, id)).status


async def test_a_task_lives_and_ends(house: House) -> None:
    pid = await house.start_counter("a")
    task = await house.runtime.task(NAMESPACE, "a")
    assert (task.pid, task.status, task.stdio) == (pid, TaskStatus.RUNNING, house.stdio("a"))
    assert pid in await house.runtime.pids(NAMESPACE, "a")
    await counts_beyond(house, "a", 2)
    await house.runtime.kill(NAMESPACE, "a", signal.SIGKILL)
    assert await house.runtime.wait_exit(NAMESPACE, "a", timeout=30) == 137
    assert await status(house, "a") is TaskStatus.STOPPED
    await house.runtime.kill(NAMESPACE, "a", signal.SIGKILL)
    assert await house.runtime.delete_task(NAMESPACE, "a") == 137
    assert await house.runtime.delete_task(NAMESPACE, "a") is None
    await house.runtime.kill(NAMESPACE, "a", signal.SIGKILL)
    with pytest.raises(NotFound):
        await house.runtime.task(NAMESPACE, "a")


async def test_a_paused_task_stands_still(house: House) -> None:
    await house.start_counter("a")
    await counts_beyond(house, "a", 2)
    await house.runtime.pause(NAMESPACE, "a")
    await house.runtime.pause(NAMESPACE, "a")
    assert await status(house, "a") is TaskStatus.PAUSED
    await asyncio.sleep(0.1)
    stood = house.count("a")
    await asyncio.sleep(0.2)
    assert house.count("a") == stood
    await house.runtime.resume(NAMESPACE, "a")
    await house.runtime.resume(NAMESPACE, "a")
    assert await status(house, "a") is TaskStatus.RUNNING
    await counts_beyond(house, "a", stood)


async def test_what_a_task_does_not_allow(house: House) -> None:
    await house.start_counter("a")
    mounts = await house.runtime.mounts(NAMESPACE, SNAPSHOTTER, "a")
    with pytest.raises(AlreadyExists):
        await house.runtime.create_task(NAMESPACE, "a", mounts=mounts, stdio=house.stdio("a"))
    with pytest.raises(RuntimeFailed):
        await house.runtime.start_task(NAMESPACE, "a")
    with pytest.raises(RuntimeFailed):
        await house.runtime.delete_task(NAMESPACE, "a")
    with pytest.raises(RuntimeTimedOut):
        await house.runtime.wait_exit(NAMESPACE, "a", timeout=0.2)
    await house.runtime.kill(NAMESPACE, "a", signal.SIGKILL)
    await house.runtime.wait_exit(NAMESPACE, "a", timeout=30)
    for call in (house.runtime.pause, house.runtime.resume):
        with pytest.raises(RuntimeFailed):
            await call(NAMESPACE, "a")
    with pytest.raises(RuntimeFailed):
        await dump(house, "a", stop=False)


async def test_time_is_over_whoever_notices_first(house: House) -> None:
    """containerd and its caller look at clocks of their own."""
    await house.start_counter("a")
    waits = (house.runtime.wait_exit(NAMESPACE, "a", timeout=0.1 + n / 500) for n in range(100))
    ended = await asyncio.gather(*waits, return_exceptions=True)
    assert {type(error) for error in ended} == {RuntimeTimedOut}


async def test_what_nobody_knows(house: House) -> None:
    runtime = house.runtime
    missing = (
        lambda: runtime.container(NAMESPACE, "x"),
        lambda: runtime.task(NAMESPACE, "x"),
        lambda: runtime.pids(NAMESPACE, "x"),
        lambda: runtime.pause(NAMESPACE, "x"),
        lambda: runtime.resume(NAMESPACE, "x"),
        lambda: runtime.start_task(NAMESPACE, "x"),
        lambda: runtime.wait_exit(NAMESPACE, "x", timeout=5),
        lambda: runtime.create_task(NAMESPACE, "x", mounts=(), stdio=Stdio()),
        lambda: dump(house, "x", stop=False),
        lambda: runtime.image(NAMESPACE, "x"),
        lambda: runtime.snapshot(NAMESPACE, SNAPSHOTTER, "x"),
        lambda: runtime.mounts(NAMESPACE, SNAPSHOTTER, "x"),
        lambda: runtime.prepare_snapshot(NAMESPACE, SNAPSHOTTER, "y", "x", {}),
    )
    for call in missing:
        with pytest.raises(NotFound):
            await call()
    await runtime.kill(NAMESPACE, "x", signal.SIGKILL)
    await runtime.delete_container(NAMESPACE, "x")
    await runtime.remove_snapshot(NAMESPACE, SNAPSHOTTER, "x")
    assert await runtime.delete_task(NAMESPACE, "x") is None
    assert await runtime.containers("nowhere") == ()


async def test_a_container_is_written_and_read(house: House) -> None:
    await house.start_counter("a")
    container = await house.runtime.container(NAMESPACE, "a")
    assert container.snapshot_key == "a"
    assert oci.CRIU_CONFIG_ANNOTATION in container.annotations
    assert NAMESPACE in await house.runtime.namespaces()
    with pytest.raises(AlreadyExists):
        await house.runtime.create_container(NAMESPACE, container)

    copy = msgspec.structs.replace(container, id="b", labels={"of": "a"}, image="some/image:1")
    await house.runtime.create_container(NAMESPACE, copy)
    assert await house.runtime.container(NAMESPACE, "b") == copy
    assert {c.id for c in await house.runtime.containers(NAMESPACE)} == {"a", "b"}

    spec = Packed(type_url=container.spec.type_url, value=b'{"hostname":"changed"}')
    changed = msgspec.structs.replace(copy, labels={"now": "this"}, spec=spec)
    await house.runtime.replace_container(NAMESPACE, changed)
    assert await house.runtime.container(NAMESPACE, "b") == changed
    assert changed.oci == {"hostname": "changed"}

    await house.runtime.delete_container(NAMESPACE, "b")
    assert [c.id for c in await house.runtime.containers(NAMESPACE)] == ["a"]


async def test_a_dump_leaves_the_task_running(house: House) -> None:
    pid = await house.start_counter("a")
    await counts_beyond(house, "a", 2)
    where = await dump(house, "a", stop=False)
    assert {"pages-1.img", "inventory.img", "descriptors.json"} <= names_in(where.image_path)
    task = await house.runtime.task(NAMESPACE, "a")
    assert (task.pid, task.status) == (pid, TaskStatus.RUNNING)
    await counts_beyond(house, "a", house.count("a"))


async def test_a_paused_task_is_still_paused_after_its_dump(house: House) -> None:
    await house.start_counter("a")
    await counts_beyond(house, "a", 2)
    await house.runtime.pause(NAMESPACE, "a")
    reached = house.count("a")
    where = await dump(house, "a", stop=False)
    assert await status(house, "a") is TaskStatus.PAUSED
    assert house.count("a") - reached <= 1
    await house.runtime.resume(NAMESPACE, "a")
    await counts_beyond(house, "a", reached + 2)
    assert await end(house, "a") == 137
    await restore(house, "a", where)
    await counts_beyond(house, "a", reached + 2)


async def test_a_dumped_task_goes_on_under_its_id(house: House) -> None:
    await house.start_counter("a")
    await counts_beyond(house, "a", 5)
    where = await dump(house, "a", stop=True)
    assert await house.runtime.wait_exit(NAMESPACE, "a", timeout=30) == 137
    reached = house.count("a")
    await house.runtime.delete_task(NAMESPACE, "a")
    pid = await restore(house, "a", where)
    task = await house.runtime.task(NAMESPACE, "a")
    assert (task.pid, task.status) == (pid, TaskStatus.RUNNING)
    assert pid in await house.runtime.pids(NAMESPACE, "a")
    assert house.count("a") >= reached
    await counts_beyond(house, "a", reached)
    assert await end(house, "a") == 137


async def test_a_dumped_task_goes_on_under_a_new_id(house: House) -> None:
    await house.start_counter("a")
    await counts_beyond(house, "a", 5)
    where = await dump(house, "a", stop=True)
    reached = house.count("a")
    container = await house.runtime.container(NAMESPACE, "a")
    parent = (await house.runtime.snapshot(NAMESPACE, SNAPSHOTTER, "a")).parent
    await house.runtime.prepare_snapshot(NAMESPACE, SNAPSHOTTER, "b", parent, GC_ROOT)
    copy = msgspec.structs.replace(container, id="b", snapshot_key="b")
    await house.runtime.create_container(NAMESPACE, copy)
    await restore(house, "b", where)
    await counts_beyond(house, "b", reached)
    assert await status(house, "b") is TaskStatus.RUNNING
    assert await status(house, "a") is TaskStatus.STOPPED


async def test_damaged_images_do_not_become_a_task(house: House) -> None:
    await house.start_counter("a")
    where = await dump(house, "a", stop=True)
    await house.runtime.delete_task(NAMESPACE, "a")
    (Path(where.image_path) / "inventory.img").unlink()
    with pytest.raises(RuntimeFailed):
        await restore(house, "a", where)
    assert "Error" in (Path(where.work_path) / "restore.log").read_text()


async def test_snapshots(house: House) -> None:
    runtime, space = house.runtime, (NAMESPACE, SNAPSHOTTER)
    (mount,) = await runtime.prepare_snapshot(*space, "filling", "", GC_ROOT)
    (Path(mount.source) / "file").write_text("from below")
    with pytest.raises(AlreadyExists):
        await runtime.prepare_snapshot(*space, "filling", "", GC_ROOT)
    await runtime.commit_snapshot(*space, "base", "filling", GC_ROOT)
    base = await runtime.snapshot(*space, "base")
    assert (base.kind, base.parent) == (SnapshotKind.COMMITTED, "")
    assert base.labels[GC_ROOT_LABEL] == GC_ROOT[GC_ROOT_LABEL]
    with pytest.raises(NotFound):
        await runtime.snapshot(*space, "filling")

    for key in ("one", "two"):
        await runtime.prepare_snapshot(*space, key, "base", GC_ROOT)
    (mount,) = mounts = await runtime.mounts(*space, "one")
    assert mount.type == "overlay"
    layers = dict(option.split("=", 1) for option in mount.options if "=" in option)
    assert (Path(layers["lowerdir"]) / "file").read_text() == "from below"
    assert names_in(layers["upperdir"]) == set()
    assert mounts != await runtime.mounts(*space, "two")
    assert (await runtime.snapshot(*space, "one")).kind is SnapshotKind.ACTIVE

    with pytest.raises(WrongState):
        await runtime.remove_snapshot(*space, "base")
    for key in ("one", "two", "base"):
        await runtime.remove_snapshot(*space, key)
    with pytest.raises(NotFound):
        await runtime.snapshot(*space, "base")


async def test_a_dead_containerd_is_unavailable_and_comes_back(house: House) -> None:
    pid = await house.start_counter("a")
    await counts_beyond(house, "a", 2)
    await house.down()
    for call in (
        house.runtime.version,
        lambda: house.runtime.task(NAMESPACE, "a"),
        lambda: dump(house, "a", stop=False),
    ):
        with pytest.raises(RuntimeUnavailable):
            await call()
    await house.up()
    await answers(house.runtime)
    task = await house.runtime.task(NAMESPACE, "a")
    assert (task.pid, task.status) == (pid, TaskStatus.RUNNING)
    where = await dump(house, "a", stop=True)
    await house.runtime.delete_task(NAMESPACE, "a")
    reached = house.count("a") if isinstance(house, RealHouse) else 0
    await restore(house, "a", where)
    await counts_beyond(house, "a", reached)


async def answers(runtime: Runtime) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(RuntimeUnavailable):
                await runtime.version()
                return
            await asyncio.sleep(0.05)


async def test_the_twin_fails_on_demand(tmp_path: Path) -> None:
    house = TwinHouse(tmp_path)
    house.twin.fail("pause", RuntimeFailed("as told"), nth=2)
    house.twin.fail("delete_container", RuntimeUnavailable("the answer is lost"), after=True)
    house.twin.add_image(NAMESPACE, Image(name="some/image:1", digest="sha256:0"))
    await house.start_counter("a")
    await house.twin.pause(NAMESPACE, "a")
    with pytest.raises(RuntimeFailed, match="as told"):
        await house.twin.pause(NAMESPACE, "a")
    await house.twin.resume(NAMESPACE, "a")
    house.twin.make_undumpable("a", "Error: a reason")
    images, work = paths(house)
    with pytest.raises(RuntimeFailed):
        await house.twin.checkpoint(NAMESPACE, "a", DumpOptions(image_path=images, work_path=work))
    assert (Path(work) / "dump.log").read_text() == "Error: a reason"
    with pytest.raises(RuntimeUnavailable):
        await house.twin.delete_container(NAMESPACE, "a")
    assert await house.twin.containers(NAMESPACE) == ()
    house.twin.delay("start_task", 5)
    with pytest.raises(RuntimeTimedOut):
        await house.twin.start_task(NAMESPACE, "a", timeout=0.01)
