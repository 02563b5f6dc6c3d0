"""Between containerd's messages and the port's data."""

from collections.abc import Iterable

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from node_worker.containerd.port import (
    Container,
    DumpOptions,
    Mount,
    Packed,
    RestorePaths,
    Snapshot,
    SnapshotKind,
    Stdio,
    Task,
    TaskStatus,
)
from node_worker.containerd.proto import (
    containers_pb2,
    mount_pb2,
    runc_pb2,
    snapshots_pb2,
    tasks_pb2,
)

_STATUS = {
    tasks_pb2.CREATED: TaskStatus.CREATED,
    tasks_pb2.RUNNING: TaskStatus.RUNNING,
    tasks_pb2.STOPPED: TaskStatus.STOPPED,
    tasks_pb2.PAUSED: TaskStatus.PAUSED,
    tasks_pb2.PAUSING: TaskStatus.PAUSED,
}
_KIND = {
    snapshots_pb2.VIEW: SnapshotKind.VIEW,
    snapshots_pb2.ACTIVE: SnapshotKind.ACTIVE,
    snapshots_pb2.COMMITTED: SnapshotKind.COMMITTED,
}


def packed(message: AnyMessage) -> Packed:
    return Packed(type_url=message.type_url, value=message.value)


def any_message(value: Packed) -> AnyMessage:
    return AnyMessage(type_url=value.type_url, value=value.value)


def typed(message: Message) -> AnyMessage:
    """Containerd names a packed message without the usual `type.googleapis.com/`."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def container(message: containers_pb2.Container) -> Container:
    has_options = message.runtime.HasField("options")
    return Container(
        id=message.id,
        spec=packed(message.spec),
        image=message.image,
        labels=dict(message.labels),
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        runtime=message.runtime.name,
        runtime_options=packed(message.runtime.options) if has_options else None,
        sandbox=message.sandbox,
    )


def container_message(container: Container) -> containers_pb2.Container:
    options = container.runtime_options
    return containers_pb2.Container(
        id=container.id,
        spec=any_message(container.spec),
        image=container.image,
        labels=container.labels,
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        runtime=containers_pb2.Runtime(
            name=container.runtime, options=any_message(options) if options else None
        ),
        sandbox=container.sandbox,
    )


def task(message: tasks_pb2.Process) -> Task:
    return Task(
        pid=message.pid,
        status=_STATUS.get(message.status, TaskStatus.UNKNOWN),
        exit_status=message.exit_status,
        stdio=Stdio(
            stdin=message.stdin,
            stdout=message.stdout,
            stderr=message.stderr,
            terminal=message.terminal,
        ),
    )


def mounts(messages: Iterable[mount_pb2.Mount]) -> tuple[Mount, ...]:
    return tuple(
        Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options))
        for m in messages
    )


def mount_messages(mounts: Iterable[Mount]) -> list[mount_pb2.Mount]:
    return [
        mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options)
        for m in mounts
    ]


def snapshot(info: snapshots_pb2.Info) -> Snapshot:
    return Snapshot(
        key=info.name,
        parent=info.parent,
        kind=_KIND.get(info.kind, SnapshotKind.UNKNOWN),
        labels=dict(info.labels),
    )


def dump_options(options: DumpOptions) -> AnyMessage:
    return typed(
        runc_pb2.CheckpointOptions(
            exit=options.exit,
            open_tcp=options.open_tcp,
            external_unix_sockets=options.external_unix_sockets,
            terminal=options.terminal,
            file_locks=options.file_locks,
            image_path=options.image_path,
            work_path=options.work_path,
        )
    )


def restore_options(own: Packed | None, paths: RestorePaths) -> AnyMessage:
    """A task's options replace its container's: what the container has is carried over."""
    options = runc_pb2.Options()
    if own and own.type_url.endswith(options.DESCRIPTOR.full_name):
        options.ParseFromString(own.value)
    options.criu_image_path = paths.image_path
    options.criu_work_path = paths.work_path
    return typed(options)
