"""The container runtime's twin: containerd's notions without processes, with faults on demand.

A task counts while it runs, by the clock. A checkpoint writes its count into small files that
are named as CRIU names them, a restore reads it back. The contract suite holds it to what real
containerd does.
"""

import asyncio
import itertools
import struct
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from node_worker.containerd.port import (
    DUMP_TIMEOUT,
    RESTORE_TIMEOUT,
    AlreadyExists,
    Container,
    DumpOptions,
    Image,
    Mount,
    NotFound,
    Packed,
    RestorePaths,
    RuntimeFailed,
    RuntimeProblem,
    RuntimeTimedOut,
    RuntimeUnavailable,
    Snapshot,
    Stdio,
    Task,
    TaskStatus,
)
from tests.support.fake_snapshots import FakeSnapshots

FIRST_PID = 10_000_000  # no real process has it: above the kernel's limit
COUNTS_PER_SECOND = 50
KILLED = 137
PAGES = "pages-1.img"
FILES_IMAGE = struct.pack("<II", 0x54564319, 0x56303138)
"""No files."""
PROCESSES_IMAGE = struct.pack("<III", 0x54564319, 0x50273030, 10) + bytes.fromhex(
    "08011000180120012801"
)
"""One process: pid 1, no parent, its own group, session and only thread."""
DUMP_LOG = "(00.000000) Version: 4.2.1 (gitid 0)\n(00.010000) Dumping finished successfully\n"
GOING = (TaskStatus.RUNNING, TaskStatus.PAUSED)


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    error: RuntimeProblem
    nth: int
    after: bool


class FakeTask:
    """A process that counts while it runs."""

    def __init__(self, pid: int, stdio: Stdio, count: int = 0) -> None:
        self.pid = pid
        self.stdio = stdio
        self.status = TaskStatus.CREATED
        self.exit_status = 0
        self.ended = asyncio.Event()
        self.restored_from: RestorePaths | None = None
        self._counted = count
        self._since = 0.0

    def count(self) -> int:
        if self.status is not TaskStatus.RUNNING:
            return self._counted
        return self._counted + int((time.monotonic() - self._since) * COUNTS_PER_SECOND)

    def become(self, status: TaskStatus) -> None:
        self._counted, self._since = self.count(), time.monotonic()
        self.status = status

    def end(self, exit_status: int) -> None:
        self.become(TaskStatus.STOPPED)
        self.exit_status = exit_status
        self.ended.set()


class FakeRuntime:
    """See the module; `root` is where its snapshots lie."""

    def __init__(self, root: Path) -> None:
        self.calls: list[str] = []
        self.ran: list[int] = []
        """The pids of all that ever ran."""
        self._containers: dict[tuple[str, str], Container] = {}
        self._tasks: dict[tuple[str, str], FakeTask] = {}
        self._snapshots = FakeSnapshots(root / "snapshots")
        self._images: dict[tuple[str, str], Image] = {}
        self._numbers = itertools.count(1)
        self._up = True
        self._seen: Counter[str] = Counter()
        self._faults: dict[str, list[Fault]] = {}
        self._delays: dict[str, float] = {}
        self._undumpable: dict[str, str] = {}

    # what tests do to it

    def down(self) -> None:
        """containerd is gone; its containers run on."""
        self._up = False

    def up(self) -> None:
        self._up = True

    def fail(
        self, method: str, error: RuntimeProblem, *, nth: int = 1, after: bool = False
    ) -> None:
        """Let the nth call from now fail, `after` the work was done if the answer gets lost."""
        fault = Fault(error=error, nth=self._seen[method] + nth, after=after)
        self._faults.setdefault(method, []).append(fault)

    def delay(self, method: str, seconds: float) -> None:
        self._delays[method] = seconds

    def make_undumpable(self, id: str, log: str) -> None:
        """Dumps of this container fail and leave this text as CRIU's log."""
        self._undumpable[id] = log

    def count(self, namespace: str, id: str) -> int:
        return self._task(namespace, id).count()

    def task_of(self, namespace: str, id: str) -> FakeTask:
        return self._task(namespace, id)

    def add_image(self, namespace: str, image: Image) -> None:
        self._images[namespace, image.name] = image

    # what the port says

    async def version(self) -> str:
        await self._call("version")
        return "2.0.0-twin"

    async def namespaces(self) -> tuple[str, ...]:
        await self._call("namespaces")
        used = {key[0] for key in (*self._containers, *self._images)}
        return tuple(sorted(used | self._snapshots.namespaces()))

    async def image(self, namespace: str, name: str) -> Image:
        await self._call("image")
        if (image := self._images.get((namespace, name))) is None:
            raise NotFound(f'image "{name}": not found')
        return image

    async def container(self, namespace: str, id: str) -> Container:
        await self._call("container")
        return self._container(namespace, id)

    async def containers(self, namespace: str) -> tuple[Container, ...]:
        await self._call("containers")
        return tuple(c for (space, _), c in self._containers.items() if space == namespace)

    async def create_container(self, namespace: str, container: Container) -> None:
        lost = await self._call("create_container")
        if (namespace, container.id) in self._containers:
            raise AlreadyExists(f'container "{container.id}": already exists')
        self._containers[namespace, container.id] = container
        _raise(lost)

    async def replace_container(self, namespace: str, container: Container) -> None:
        lost = await self._call("replace_container")
        old = self._container(namespace, container.id)
        self._containers[namespace, container.id] = msgspec.structs.replace(
            old,
            labels=container.labels,
            image=container.image,
            spec=container.spec,
            snapshot_key=container.snapshot_key,
        )
        _raise(lost)

    async def delete_container(self, namespace: str, id: str) -> None:
        lost = await self._call("delete_container")
        self._containers.pop((namespace, id), None)
        _raise(lost)

    async def task(self, namespace: str, id: str) -> Task:
        await self._call("task")
        task = self._task(namespace, id)
        return Task(
            pid=task.pid, status=task.status, exit_status=task.exit_status, stdio=task.stdio
        )

    async def pids(self, namespace: str, id: str) -> tuple[int, ...]:
        await self._call("pids")
        task = self._task(namespace, id)
        return () if task.status is TaskStatus.STOPPED else (task.pid,)

    async def create_task(
        self,
        namespace: str,
        id: str,
        *,
        mounts: tuple[Mount, ...],
        stdio: Stdio,
        restore: RestorePaths | None = None,
        options: Packed | None = None,
        timeout: float = RESTORE_TIMEOUT,
    ) -> None:
        lost = await self._call("create_task", timeout)
        self._container(namespace, id)
        if (namespace, id) in self._tasks:
            raise AlreadyExists(f"task {id}: already exists")
        if not mounts:
            raise RuntimeFailed("Create: a task needs the mounts of its root filesystem")
        task = FakeTask(FIRST_PID + next(self._numbers), stdio, _restored_count(restore))
        task.restored_from = restore
        self._tasks[namespace, id] = task
        _raise(lost)

    async def start_task(self, namespace: str, id: str, *, timeout: float = RESTORE_TIMEOUT) -> int:
        lost = await self._call("start_task", timeout)
        task = self._task(namespace, id)
        if task.status is not TaskStatus.CREATED:
            raise RuntimeFailed(f"Start: cannot start a {task.status} task")
        self.ran.append(task.pid)
        task.become(TaskStatus.RUNNING)
        _raise(lost)
        return task.pid

    async def pause(self, namespace: str, id: str) -> None:
        lost = await self._call("pause")
        self._going(namespace, id).become(TaskStatus.PAUSED)
        _raise(lost)

    async def resume(self, namespace: str, id: str) -> None:
        lost = await self._call("resume")
        self._going(namespace, id).become(TaskStatus.RUNNING)
        _raise(lost)

    async def kill(self, namespace: str, id: str, signal: int, *, all: bool = False) -> None:
        lost = await self._call("kill")
        task = self._tasks.get((namespace, id))
        if task and task.status is not TaskStatus.STOPPED:
            task.end(128 + signal)
        _raise(lost)

    async def wait_exit(self, namespace: str, id: str, *, timeout: float) -> int:
        await self._call("wait_exit")
        task = self._task(namespace, id)
        try:
            async with asyncio.timeout(timeout):
                await task.ended.wait()
        except TimeoutError as error:
            raise RuntimeTimedOut(f"containerd did not end Wait within {timeout:g} s") from error
        return task.exit_status

    async def delete_task(self, namespace: str, id: str) -> int | None:
        lost = await self._call("delete_task")
        if (task := self._tasks.get((namespace, id))) is None:
            return None
        if task.status in GOING:
            raise RuntimeFailed("Delete: cannot delete a running process")
        del self._tasks[namespace, id]
        _raise(lost)
        return task.exit_status

    async def checkpoint(
        self, namespace: str, id: str, options: DumpOptions, *, timeout: float = DUMP_TIMEOUT
    ) -> None:
        lost = await self._call("checkpoint", timeout)
        task = self._going(namespace, id)
        if log := self._undumpable.get(id):
            (Path(options.work_path) / "dump.log").write_text(log)
            raise RuntimeFailed("Checkpoint: criu failed: type NOTIFY errno 0")
        status = task.status
        task.become(TaskStatus.PAUSED)
        _dump(options, task.count())
        if options.exit:
            task.end(KILLED)
        else:
            task.become(status)
        _raise(lost)

    async def snapshot(self, namespace: str, snapshotter: str, key: str) -> Snapshot:
        await self._call("snapshot")
        return self._snapshots.get((namespace, snapshotter, key))

    async def mounts(self, namespace: str, snapshotter: str, key: str) -> tuple[Mount, ...]:
        await self._call("mounts")
        return self._snapshots.mounts((namespace, snapshotter, key))

    async def prepare_snapshot(
        self,
        namespace: str,
        snapshotter: str,
        key: str,
        parent: str,
        labels: Mapping[str, str],
    ) -> tuple[Mount, ...]:
        lost = await self._call("prepare_snapshot")
        self._snapshots.prepare((namespace, snapshotter, key), parent, labels)
        _raise(lost)
        return self._snapshots.mounts((namespace, snapshotter, key))

    async def commit_snapshot(
        self, namespace: str, snapshotter: str, name: str, key: str, labels: Mapping[str, str]
    ) -> None:
        lost = await self._call("commit_snapshot")
        self._snapshots.commit((namespace, snapshotter, key), name, labels)
        _raise(lost)

    async def remove_snapshot(self, namespace: str, snapshotter: str, key: str) -> None:
        lost = await self._call("remove_snapshot")
        self._snapshots.remove((namespace, snapshotter, key))
        _raise(lost)

    # inside

    async def _call(self, method: str, timeout: float | None = None) -> RuntimeProblem | None:
        """Count the call and let it suffer what it should; an error to raise after the work."""
        self.calls.append(method)
        self._seen[method] += 1
        number = self._seen[method]
        if delay := self._delays.get(method):
            await self._sleep(method, delay, timeout)
        else:
            await asyncio.sleep(0)
        if not self._up:
            raise RuntimeUnavailable("containerd does not answer; see that it runs")
        for fault in self._faults.get(method, []):
            if fault.nth == number:
                if fault.after:
                    return fault.error
                raise fault.error
        return None

    async def _sleep(self, method: str, delay: float, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(delay)
        except TimeoutError as error:
            raise RuntimeTimedOut(f"containerd did not end {method}") from error

    def _container(self, namespace: str, id: str) -> Container:
        if (container := self._containers.get((namespace, id))) is None:
            raise NotFound(f'container "{id}" in namespace "{namespace}": not found')
        return container

    def _task(self, namespace: str, id: str) -> FakeTask:
        if (task := self._tasks.get((namespace, id))) is None:
            raise NotFound(f"no running task found: task {id} not found")
        return task

    def _going(self, namespace: str, id: str) -> FakeTask:
        task = self._task(namespace, id)
        if task.status not in GOING:
            raise RuntimeFailed(f"the task is {task.status}")
        return task


def _dump(options: DumpOptions, count: int) -> None:
    folder = Path(options.image_path)
    (folder / PAGES).write_bytes(count.to_bytes(8, "little") * 512)
    (folder / "files.img").write_bytes(FILES_IMAGE)
    (folder / "pstree.img").write_bytes(PROCESSES_IMAGE)
    for name in ("core-1.img", "inventory.img", "mm-1.img"):
        (folder / name).write_bytes(f"twin of {name}\n".encode())
    (folder / "descriptors.json").write_text('["/dev/null","pipe:[1]","pipe:[2]"]')
    (Path(options.work_path) / "dump.log").write_text(DUMP_LOG)


def _restored_count(restore: RestorePaths | None) -> int:
    if restore is None:
        return 0
    images = Path(restore.image_path)
    if not (images / PAGES).is_file() or not (images / "inventory.img").is_file():
        (Path(restore.work_path) / "restore.log").write_text("Error: can't open inventory.img\n")
        raise RuntimeFailed("Create: criu failed: type NOTIFY errno 0")
    return int.from_bytes((images / PAGES).read_bytes()[:8], "little")


def _raise(lost: RuntimeProblem | None) -> None:
    if lost is not None:
        raise lost
