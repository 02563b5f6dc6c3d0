"""What the node worker needs from a container runtime: the protocol, its data and its errors.

`client.py` speaks to containerd; the tests' twin behaves the same way, and one contract suite
holds both to it. Rules that the callers rely on:

- Every call has a time-out. The ones that can take long (`checkpoint`, `create_task`,
  `wait_exit`) let the caller say how long.
- Undoing is idempotent: `resume` of a task that runs, `pause` of a paused one, `kill` of one
  that has ended, `delete_*` and `remove_snapshot` of what is gone all succeed.
- `NotFound` is always about the thing that the call names.
"""

import enum
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from kybernate.problems import Expected

CALL_TIMEOUT = 10.0
DUMP_TIMEOUT = 600.0
RESTORE_TIMEOUT = 600.0

GC_ROOT_LABEL = "containerd.io/gc.root"
"""A snapshot with this label survives containerd's garbage collection without a container."""


class RuntimeProblem(Expected):
    """Whatever the container runtime could not do."""


class RuntimeUnavailable(RuntimeProblem):
    """containerd does not answer on its socket; see that it runs and that the path is right."""


class NotFound(RuntimeProblem):
    """containerd knows nothing by that name in that namespace."""


class AlreadyExists(RuntimeProblem):
    """containerd already has something by that name in that namespace."""


class RuntimeFailed(RuntimeProblem):
    """containerd, the shim, runc or CRIU reported an error; the message is theirs."""


class WrongState(RuntimeFailed):
    """The state of the thing does not allow it (removing a snapshot that others stand on)."""


class RuntimeTimedOut(RuntimeFailed):
    """The call did not end in its time; what it had begun may still go on."""


class TaskStatus(enum.StrEnum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """A message that only the runtime understands, as protobuf's Any carries it."""

    type_url: str
    value: bytes


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime's record of a container; it may have no task."""

    id: str
    spec: Packed
    image: str = ""
    labels: Mapping[str, str] = {}
    snapshotter: str = ""
    snapshot_key: str = ""
    runtime: str = "io.containerd.runc.v2"
    runtime_options: Packed | None = None
    sandbox: str = ""

    @property
    def oci(self) -> dict[str, Any]:
        """The OCI spec (config.json) as its JSON says it."""
        spec: dict[str, Any] = msgspec.json.decode(self.spec.value, type=dict[str, Any])
        return spec

    @property
    def annotations(self) -> Mapping[str, str]:
        return self.oci.get("annotations") or {}


class Stdio(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task's streams go: FIFO paths or `file:///…` URIs; empty means nowhere."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """The running (or ended) first process of a container."""

    pid: int
    status: TaskStatus
    stdio: Stdio
    exit_status: int = 0


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One mount of a root filesystem, as the snapshotter answers it."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


class SnapshotKind(enum.StrEnum):
    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"
    UNKNOWN = "unknown"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    parent: str
    kind: SnapshotKind
    labels: Mapping[str, str] = {}


class Image(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    digest: str


class DumpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a task is dumped; `image_path` gets raw CRIU images, `work_path` CRIU's logs."""

    image_path: str
    work_path: str
    exit: bool = False
    open_tcp: bool = False
    external_unix_sockets: bool = False
    terminal: bool = False
    file_locks: bool = False


class RestorePaths(msgspec.Struct, frozen=True, kw_only=True):
    image_path: str
    work_path: str


class Runtime(Protocol):
    """A container runtime with containerd's notions: containers, tasks, snapshots, namespaces."""

    async def version(self) -> str: ...

    async def namespaces(self) -> tuple[str, ...]: ...

    async def image(self, namespace: str, name: str) -> Image: ...

    async def container(self, namespace: str, id: str) -> Container: ...

    async def containers(self, namespace: str) -> tuple[Container, ...]: ...

    async def create_container(self, namespace: str, container: Container) -> None: ...

    async def replace_container(self, namespace: str, container: Container) -> None:
        """Change the spec, labels, image and snapshot of an existing container's record."""

    async def delete_container(self, namespace: str, id: str) -> None: ...

    async def task(self, namespace: str, id: str) -> Task: ...

    async def pids(self, namespace: str, id: str) -> tuple[int, ...]: ...

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
        """Make the task, from the images in `restore` if given; `start_task` sets it going.

        A restore needs its container's runtime options: those of a task stand instead of them.
        """

    async def start_task(self, namespace: str, id: str, *, timeout: float = RESTORE_TIMEOUT) -> int:
        """The pid of the container's first process. A restored one is restored here."""

    async def pause(self, namespace: str, id: str) -> None: ...

    async def resume(self, namespace: str, id: str) -> None: ...

    async def kill(self, namespace: str, id: str, signal: int, *, all: bool = False) -> None: ...

    async def wait_exit(self, namespace: str, id: str, *, timeout: float) -> int: ...

    async def delete_task(self, namespace: str, id: str) -> int | None:
        """Delete an ended task; its exit status, or None where there was no task."""

    async def checkpoint(
        self, namespace: str, id: str, options: DumpOptions, *, timeout: float = DUMP_TIMEOUT
    ) -> None:
        """Dump the task; it is paused meanwhile and runs on afterwards unless `exit` is set."""

    async def snapshot(self, namespace: str, snapshotter: str, key: str) -> Snapshot: ...

    async def mounts(self, namespace: str, snapshotter: str, key: str) -> tuple[Mount, ...]: ...

    async def prepare_snapshot(
        self,
        namespace: str,
        snapshotter: str,
        key: str,
        parent: str,
        labels: Mapping[str, str],
    ) -> tuple[Mount, ...]: ...

    async def commit_snapshot(
        self, namespace: str, snapshotter: str, name: str, key: str, labels: Mapping[str, str]
    ) -> None:
        """Turn the active snapshot `key` into the committed one `name`."""

    async def remove_snapshot(self, namespace: str, snapshotter: str, key: str) -> None: ...
