"""Start, watch and end containers on a private containerd: for the demo, tests and benchmarks."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from kybernate.embedded import oci, rootfs
from kybernate.embedded.containerd import PrivateContainerd
from node_worker.containerd.options import runc_options
from node_worker.containerd.port import (
    GC_ROOT_LABEL,
    AlreadyExists,
    Container,
    NotFound,
    Runtime,
    RuntimeProblem,
    Stdio,
    TaskStatus,
)

NAMESPACE = "kybernate"
SNAPSHOTTER = "overlayfs"
RUNTIME = "io.containerd.runc.v2"
OUTPUT_TIMEOUT = 60.0
END_TIMEOUT = 30.0
GC_ROOT = {GC_ROOT_LABEL: "kybernate"}


class Running:
    """A started container and the file that its output goes to, restored ones' included."""

    def __init__(self, runtime: Runtime, id: str, pid: int, log: Path) -> None:
        self.id = id
        self.pid = pid
        self.log = log
        self._runtime = runtime

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def lines(self) -> list[str]:
        """The complete lines written up to now."""
        return self.output().rpartition("\n")[0].splitlines()

    async def wait_for(
        self, wanted: Callable[[list[str]], bool], *, timeout: float = OUTPUT_TIMEOUT
    ) -> list[str]:
        """The lines, once they are as wanted."""
        async with asyncio.timeout(timeout):
            while not wanted(lines := self.lines()):  # noqa: ASYNC110 - a file says nothing
                await asyncio.sleep(0.02)
        return lines

    async def wait_for_more(self, count: int = 1, *, timeout: float = OUTPUT_TIMEOUT) -> list[str]:
        """The lines, once there are `count` more than now."""
        goal = len(self.lines()) + count
        return await self.wait_for(lambda lines: len(lines) >= goal, timeout=timeout)

    async def kill(self) -> None:
        """Kill the task and delete it; the container's record and snapshot stay."""
        await end_task(self._runtime, self.id)

    async def remove(self) -> None:
        """Kill it and delete everything that containerd has of it."""
        await self.kill()
        with contextlib.suppress(NotFound):  # removed already
            container = await self._runtime.container(NAMESPACE, self.id)
            await self._runtime.delete_container(NAMESPACE, self.id)
            await self._runtime.remove_snapshot(
                NAMESPACE, container.snapshotter, container.snapshot_key
            )


class Workloads:
    """The containers of one private containerd."""

    def __init__(self, daemon: PrivateContainerd, runtime: Runtime) -> None:
        self._daemon = daemon
        self._runtime = runtime
        self._python = rootfs.host_python()
        self._logs = daemon.home / "logs"
        self._logs.mkdir(exist_ok=True)

    async def start_container(
        self, id: str, workload: oci.Workload, *, python: bool = False
    ) -> Running:
        """Run it; with `python` the host's Python runs the arguments (`-c …`, a mounted file)."""
        if python:
            workload = msgspec.structs.replace(
                workload,
                args=(sys.executable, *workload.args),
                binds=(*self._python.binds, *workload.binds),
            )
        await self._create(id, workload, await self.provide_base(python=python))
        try:
            return await self._start(id)
        except RuntimeProblem:  # such as a program that is not there: the name is free again
            await self.running(id, 0).remove()
            raise

    def running(self, id: str, pid: int) -> Running:
        """A container that somebody else started here, such as the worker by a restore."""
        return Running(self._runtime, id, pid, self.log(id))

    def log(self, id: str) -> Path:
        return self._logs / f"{id}.log"

    async def clear(self) -> None:
        """Kill every task in every namespace."""
        for namespace in await self._runtime.namespaces():
            for container in await self._runtime.containers(namespace):
                await end_task(self._runtime, container.id, namespace=namespace)

    async def _create(self, id: str, workload: oci.Workload, base: str) -> None:
        place = oci.Place(
            id=id,
            cgroup=f"{self._daemon.cgroup_parent}/{id}",
            busybox=self._daemon.stack.busybox,
            criu_config=self._daemon.criu_config,
        )
        await self._runtime.prepare_snapshot(NAMESPACE, SNAPSHOTTER, id, base, GC_ROOT)
        await self._runtime.create_container(
            NAMESPACE,
            Container(
                id=id,
                spec=oci.spec(workload, place),
                snapshotter=SNAPSHOTTER,
                snapshot_key=id,
                runtime=RUNTIME,
                runtime_options=runc_options(root=self._daemon.runc_root),
            ),
        )

    async def _start(self, id: str) -> Running:
        mounts = await self._runtime.mounts(NAMESPACE, SNAPSHOTTER, id)
        output = self.log(id).as_uri()
        stdio = Stdio(stdout=output, stderr=output)
        await self._runtime.create_task(NAMESPACE, id, mounts=mounts, stdio=stdio)
        return self.running(id, await self._runtime.start_task(NAMESPACE, id))

    async def provide_base(self, *, python: bool = False) -> str:
        """The committed snapshot to prepare from, made when it is first needed."""
        name = "python" if python else "busybox"
        with contextlib.suppress(NotFound):  # then it is made below
            return (await self._runtime.snapshot(NAMESPACE, SNAPSHOTTER, name)).key
        filling = f"{name}-filling"
        await self._runtime.remove_snapshot(NAMESPACE, SNAPSHOTTER, filling)
        mounts = await self._runtime.prepare_snapshot(NAMESPACE, SNAPSHOTTER, filling, "", GC_ROOT)
        root = Path(mounts[0].source)  # without a parent it is a bind mount of the folder
        if python:
            await asyncio.to_thread(rootfs.fill_python, root, self._python)
        else:
            await asyncio.to_thread(rootfs.fill_busybox, root, self._daemon.stack.busybox)
        with contextlib.suppress(AlreadyExists):  # somebody else was faster
            await self._runtime.commit_snapshot(NAMESPACE, SNAPSHOTTER, name, filling, GC_ROOT)
        return name


async def end_task(runtime: Runtime, id: str, *, namespace: str = NAMESPACE) -> None:
    with contextlib.suppress(NotFound):  # it has no task, which is what is wanted
        if (await runtime.task(namespace, id)).status is TaskStatus.PAUSED:
            await runtime.resume(namespace, id)  # a frozen process cannot die
        await runtime.kill(namespace, id, signal.SIGKILL, all=True)
        await runtime.wait_exit(namespace, id, timeout=END_TIMEOUT)
        await runtime.delete_task(namespace, id)
