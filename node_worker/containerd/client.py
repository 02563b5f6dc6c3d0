"""The port's runtime as containerd 1.6, 1.7 and 2.x offer it on their socket."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from node_worker.containerd import convert
from node_worker.containerd.calls import Call, Caller, open_caller
from node_worker.containerd.port import (
    CALL_TIMEOUT,
    DUMP_TIMEOUT,
    RESTORE_TIMEOUT,
    Container,
    DumpOptions,
    Image,
    Mount,
    NotFound,
    Packed,
    RestorePaths,
    RuntimeFailed,
    Snapshot,
    Stdio,
    Task,
    TaskStatus,
)
from node_worker.containerd.proto import catalogue_pb2, containers_pb2, snapshots_pb2, tasks_pb2

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


def _task(method: str, request: type[Q], answer: type[A], *, reads: bool = False) -> Call[Q, A]:
    return Call(f"/containerd.services.tasks.v1.Tasks/{method}", request, answer, reads=reads)


def _container(
    method: str, request: type[Q], answer: type[A], *, reads: bool = False
) -> Call[Q, A]:
    return Call(
        f"/containerd.services.containers.v1.Containers/{method}", request, answer, reads=reads
    )


def _snapshot(method: str, request: type[Q], answer: type[A], *, reads: bool = False) -> Call[Q, A]:
    return Call(
        f"/containerd.services.snapshots.v1.Snapshots/{method}", request, answer, reads=reads
    )


class Containerd:
    """containerd behind an open channel."""

    def __init__(self, call: Caller) -> None:
        self._call = call

    async def version(self) -> str:
        call = Call(
            "/containerd.services.version.v1.Version/Version",
            Empty,
            catalogue_pb2.VersionResponse,
            reads=True,
        )
        return (await self._call(call, Empty(), timeout=CALL_TIMEOUT)).version

    async def namespaces(self) -> tuple[str, ...]:
        call = Call(
            "/containerd.services.namespaces.v1.Namespaces/List",
            Empty,
            catalogue_pb2.ListNamespacesResponse,
            reads=True,
        )
        answer = await self._call(call, Empty(), timeout=CALL_TIMEOUT)
        return tuple(namespace.name for namespace in answer.namespaces)

    async def image(self, namespace: str, name: str) -> Image:
        call = Call(
            "/containerd.services.images.v1.Images/Get",
            catalogue_pb2.GetImageRequest,
            catalogue_pb2.GetImageResponse,
            reads=True,
        )
        request = catalogue_pb2.GetImageRequest(name=name)
        answer = await self._call(call, request, namespace=namespace, timeout=CALL_TIMEOUT)
        return Image(name=answer.image.name, digest=answer.image.target.digest)

    # containers

    async def container(self, namespace: str, id: str) -> Container:
        call = _container(
            "Get", containers_pb2.ContainerRequest, containers_pb2.ContainerMessage, reads=True
        )
        request = containers_pb2.ContainerRequest(id=id)
        answer = await self._call(call, request, namespace=namespace, timeout=CALL_TIMEOUT)
        return convert.container(answer.container)

    async def containers(self, namespace: str) -> tuple[Container, ...]:
        call = _container("List", Empty, containers_pb2.ListContainersResponse, reads=True)
        answer = await self._call(call, Empty(), namespace=namespace, timeout=CALL_TIMEOUT)
        return tuple(convert.container(message) for message in answer.containers)

    async def create_container(self, namespace: str, container: Container) -> None:
        call = _container(
            "Create", containers_pb2.ContainerMessage, containers_pb2.ContainerMessage
        )
        request = containers_pb2.ContainerMessage(container=convert.container_message(container))
        await self._call(call, request, namespace=namespace, timeout=CALL_TIMEOUT)

    async def replace_container(self, namespace: str, container: Container) -> None:
        call = _container(
            "Update", containers_pb2.UpdateContainerRequest, containers_pb2.ContainerMessage
        )
        request = containers_pb2.UpdateContainerRequest(
            container=convert.container_message(container)
        )
        request.update_mask.paths.extend(("labels", "image", "spec", "snapshotkey"))
        await self._call(call, request, namespace=namespace, timeout=CALL_TIMEOUT)

    async def delete_container(self, namespace: str, id: str) -> None:
        call = _container("Delete", containers_pb2.ContainerRequest, Empty)
        request = containers_pb2.ContainerRequest(id=id)
        with contextlib.suppress(NotFound):  # gone is what was asked for
            await self._call(call, request, namespace=namespace, timeout=CALL_TIMEOUT)

    # tasks

    async def task(self, namespace: str, id: str) -> Task:
        call = _task("Get", tasks_pb2.TaskRequest, tasks_pb2.GetResponse, reads=True)
        answer = await self._on_task(call, namespace, id)
        return convert.task(answer.process)

    async def pids(self, namespace: str, id: str) -> tuple[int, ...]:
        call = _task("ListPids", tasks_pb2.TaskRequest, tasks_pb2.ListPidsResponse, reads=True)
        answer = await self._on_task(call, namespace, id)
        return tuple(process.pid for process in answer.processes)

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
        call = _task("Create", tasks_pb2.CreateTaskRequest, Empty)
        request = tasks_pb2.CreateTaskRequest(
            container_id=id,
            rootfs=convert.mount_messages(mounts),
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            terminal=stdio.terminal,
        )
        if restore is not None:
            request.options.CopyFrom(convert.restore_options(options, restore))
        await self._call(call, request, namespace=namespace, timeout=timeout)

    async def start_task(self, namespace: str, id: str, *, timeout: float = RESTORE_TIMEOUT) -> int:
        call = _task("Start", tasks_pb2.TaskRequest, tasks_pb2.StartResponse)
        return (await self._on_task(call, namespace, id, timeout=timeout)).pid

    async def pause(self, namespace: str, id: str) -> None:
        await self._set_going(namespace, id, "Pause", TaskStatus.PAUSED)

    async def resume(self, namespace: str, id: str) -> None:
        await self._set_going(namespace, id, "Resume", TaskStatus.RUNNING)

    async def _set_going(self, namespace: str, id: str, method: str, wanted: TaskStatus) -> None:
        call = _task(method, tasks_pb2.TaskRequest, Empty)
        try:
            await self._on_task(call, namespace, id)
        except RuntimeFailed:
            if (await self.task(namespace, id)).status is not wanted:
                raise

    async def kill(self, namespace: str, id: str, signal: int, *, all: bool = False) -> None:
        call = _task("Kill", tasks_pb2.KillRequest, Empty)
        request = tasks_pb2.KillRequest(container_id=id, signal=signal, all=all)
        with contextlib.suppress(NotFound):  # it has ended, which a signal may be late for
            await self._call(call, request, namespace=namespace, timeout=CALL_TIMEOUT)

    async def wait_exit(self, namespace: str, id: str, *, timeout: float) -> int:
        call = _task("Wait", tasks_pb2.TaskRequest, tasks_pb2.WaitResponse)
        return (await self._on_task(call, namespace, id, timeout=timeout)).exit_status

    async def delete_task(self, namespace: str, id: str) -> int | None:
        call = _task("Delete", tasks_pb2.TaskRequest, tasks_pb2.DeleteResponse)
        try:
            return (await self._on_task(call, namespace, id)).exit_status
        except NotFound:
            return None

    async def checkpoint(
        self, namespace: str, id: str, options: DumpOptions, *, timeout: float = DUMP_TIMEOUT
    ) -> None:
        call = _task("Checkpoint", tasks_pb2.CheckpointTaskRequest, Empty)
        request = tasks_pb2.CheckpointTaskRequest(
            container_id=id, options=convert.dump_options(options)
        )
        await self._call(call, request, namespace=namespace, timeout=timeout)

    async def _on_task(
        self,
        call: Call[tasks_pb2.TaskRequest, A],
        namespace: str,
        id: str,
        *,
        timeout: float = CALL_TIMEOUT,
    ) -> A:
        request = tasks_pb2.TaskRequest(container_id=id)
        return await self._call(call, request, namespace=namespace, timeout=timeout)

    # snapshots

    async def snapshot(self, namespace: str, snapshotter: str, key: str) -> Snapshot:
        call = _snapshot(
            "Stat", snapshots_pb2.SnapshotRequest, snapshots_pb2.StatSnapshotResponse, reads=True
        )
        request = snapshots_pb2.SnapshotRequest(snapshotter=snapshotter, key=key)
        answer = await self._call(call, request, namespace=namespace, timeout=CALL_TIMEOUT)
        return convert.snapshot(answer.info)

    async def mounts(self, namespace: str, snapshotter: str, key: str) -> tuple[Mount, ...]:
        call = _snapshot(
            "Mounts", snapshots_pb2.SnapshotRequest, snapshots_pb2.MountsResponse, reads=True
        )
        request = snapshots_pb2.SnapshotRequest(snapshotter=snapshotter, key=key)
        answer = await self._call(call, request, namespace=namespace, timeout=CALL_TIMEOUT)
        return convert.mounts(answer.mounts)

    async def prepare_snapshot(
        self,
        namespace: str,
        snapshotter: str,
        key: str,
        parent: str,
        labels: Mapping[str, str],
    ) -> tuple[Mount, ...]:
        call = _snapshot(
            "Prepare", snapshots_pb2.PrepareSnapshotRequest, snapshots_pb2.MountsResponse
        )
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=snapshotter, key=key, parent=parent, labels=labels
        )
        answer = await self._call(call, request, namespace=namespace, timeout=CALL_TIMEOUT)
        return convert.mounts(answer.mounts)

    async def commit_snapshot(
        self, namespace: str, snapshotter: str, name: str, key: str, labels: Mapping[str, str]
    ) -> None:
        call = _snapshot("Commit", snapshots_pb2.CommitSnapshotRequest, Empty)
        request = snapshots_pb2.CommitSnapshotRequest(
            snapshotter=snapshotter, name=name, key=key, labels=labels
        )
        await self._call(call, request, namespace=namespace, timeout=CALL_TIMEOUT)

    async def remove_snapshot(self, namespace: str, snapshotter: str, key: str) -> None:
        call = _snapshot("Remove", snapshots_pb2.SnapshotRequest, Empty)
        request = snapshots_pb2.SnapshotRequest(snapshotter=snapshotter, key=key)
        with contextlib.suppress(NotFound):  # gone is what was asked for
            await self._call(call, request, namespace=namespace, timeout=CALL_TIMEOUT)


@contextlib.asynccontextmanager
async def connect(socket: Path) -> AsyncIterator[Containerd]:
    """Containerd on `socket`; it may be down now and come back, the calls tell."""
    async with open_caller(socket) as caller:
        yield Containerd(caller)
