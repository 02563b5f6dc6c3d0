"""The all-in-one: NATS, controller, worker and a private containerd in one folder of one host.

Started in that order and ended in the reverse one, so that the worker can undo what it has not
finished while everything that it needs still answers. One at a time per folder; what is in the
folder survives: checkpoints, the ledger, the streams and buckets.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from controller import app as controller_app
from controller.settings import ControllerSettings
from kybernate.bus import BusSettings
from kybernate.bus.nats import connect
from kybernate.embedded.containerd import PrivateContainerd, private_containerd
from kybernate.embedded.nats_server import nats_server
from kybernate.embedded.stack import find_stack
from kybernate.lock import Locked, locked
from node_worker import app as worker_app
from node_worker.gpu.helper import CUDA_DRIVER
from node_worker.settings import DEFAULT_RUNTIME_STATE, WorkerSettings

log = logging.getLogger(__name__)


class HostSettings(msgspec.Struct, frozen=True, kw_only=True):
    folder: Path
    node: str
    listen: str = "127.0.0.1:7474"
    tokens: tuple[str, ...] = ()
    checkpoints: Path | None = None
    containerd: Path | None = None
    """Socket of a containerd that runs already; none: a private one."""
    gpu_driver: str = CUDA_DRIVER
    gpu_argument: str = ""
    pods: bool = False
    runtime_state: Path = DEFAULT_RUNTIME_STATE
    kubernetes: bool = False
    kubeconfig: Path | None = None
    webhook_listen: str = ""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What runs now."""

    url: str
    nats: str
    containerd: Path
    daemon: PrivateContainerd | None


class AlreadyUp(Exception):
    """Another all-in-one runs in this folder; stop it, or choose another --state."""


async def run(settings: HostSettings) -> None:
    """Until cancelled."""
    async with all_in_one(settings) as host:
        log.info("containerd is at %s", host.containerd)
        log.info("serving the REST API at %s", host.url)
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def all_in_one(settings: HostSettings) -> AsyncIterator[Host]:
    """Everything, once the worker takes jobs."""
    folder = settings.folder
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_alone(folder))
        nats = await stack.enter_async_context(nats_server(folder / "nats"))
        daemon, socket = None, settings.containerd
        if socket is None:
            private = private_containerd(find_stack(), folder / "containerd", adopt=True)
            daemon = await stack.enter_async_context(private)
            socket = daemon.socket
        bus = BusSettings(servers=(nats.url,))
        url = await stack.enter_async_context(_controller(settings, bus))
        await stack.enter_async_context(_worker(settings, bus, socket, daemon))
        yield Host(url=url, nats=nats.url, containerd=socket, daemon=daemon)


@contextlib.asynccontextmanager
async def _controller(settings: HostSettings, bus: BusSettings) -> AsyncIterator[str]:
    controller = ControllerSettings(
        listen=settings.listen,
        tokens=settings.tokens,
        kubernetes=settings.kubernetes,
        kubeconfig=settings.kubeconfig,
        webhook_listen=settings.webhook_listen,
        bus=bus,
    )
    async with (
        connect(bus, name="kybernate-controller") as link,
        controller_app.serving(controller, link) as url,
    ):
        yield url


@contextlib.asynccontextmanager
async def _worker(
    settings: HostSettings, bus: BusSettings, socket: Path, daemon: PrivateContainerd | None
) -> AsyncIterator[None]:
    worker = WorkerSettings(
        node=settings.node,
        state=settings.folder / "worker",
        checkpoints=settings.checkpoints or settings.folder / "checkpoints",
        containerd=socket,
        bus=bus,
        gpu_driver=settings.gpu_driver,
        gpu_argument=settings.gpu_argument,
        runc_root=daemon.runc_root if daemon else None,
        cgroup_parent=daemon.cgroup_parent if daemon else "",
        pods=settings.pods,
        runtime_state=settings.runtime_state,
    )
    async with (
        connect(bus, name=f"kybernate-worker-{settings.node}") as link,
        worker_app.serving(worker, link),
    ):
        yield


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / "up.lock"))
        except Locked as holder:
            raise AlreadyUp(
                f"process {holder} runs in {folder} already; "
                "stop it, or choose another folder with --state"
            ) from holder
        yield
