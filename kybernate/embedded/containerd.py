"""A private containerd: own root, state, socket and configuration below one folder.

It touches nothing that is installed on the machine. Its processes carry the folder's name in
their environment and the containers' cgroups its hash, so that what a killed one left behind can be
found and ended by the next (`leftovers`).
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from kybernate import tasks
from kybernate.embedded import leftovers
from kybernate.embedded.stack import Stack
from node_worker.containerd.client import Containerd, connect
from node_worker.containerd.port import RuntimeProblem

START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0
LONGEST_SOCKET = 107
DISABLED = (
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.grpc.v1.cri",
    "io.containerd.grpc.v1.podsandbox-controllers",
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
)
CRIU_CONFIG = """\
# Read by CRIU through the workloads' annotation org.criu.config; containerd passes none of these.
network-lock skip
tcp-established
file-locks
"""


class ContainerdFailed(Exception):
    """The private containerd did not start or did not stop."""


class PrivateContainerd:
    """The daemon; `stop`, `kill` and `start` let a test or an operator take it away and back."""

    def __init__(self, stack: Stack, home: Path) -> None:
        self.stack = stack
        self.home = home
        self.socket = home / "containerd.sock"
        self.log = home / "containerd.log"
        self.criu_config = home / "criu.conf"
        self.runc_root = leftovers.runc_root(home)
        self.cgroup_parent = leftovers.cgroup_parent(home)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start it and wait until it answers."""
        self._write_configuration()
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                self.stack.containerd,
                "--config",
                self.home / "config.toml",
                env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for whoever cleans up, not for containerd
            )
        await self._wait_until_ready(self._process)

    async def stop(self) -> None:
        """End the daemon; containers run on, as they do when an installed one restarts."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    async def _end(self, how: signal.Signals) -> None:
        if (process := self._process) is None:
            return
        with contextlib.suppress(ProcessLookupError):  # it may have died by itself
            process.send_signal(how)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        self._process = None

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT), connect(self.socket) as runtime:
                while not await _answers(runtime):
                    if process.returncode is not None:
                        break
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            await self.kill()
            raise ContainerdFailed(self._last_words("did not answer in time")) from error
        if process.returncode is not None:
            self._process = None
            raise ContainerdFailed(self._last_words(f"ended with {process.returncode}"))

    def _last_words(self, what: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-8:]
        return "\n".join(
            (f"the private containerd {what}; its log, {self.log}, ends with:", *lines)
        )

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": self.stack.path,
            "HOME": str(self.home),
            leftovers.MARK: str(self.home),
        }

    def _write_configuration(self) -> None:
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET:
            raise ContainerdFailed(
                f"the path {self.socket} is too long for a Unix socket "
                f"(at most {LONGEST_SOCKET} bytes); choose a shorter state folder"
            )
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.criu_config.write_text(CRIU_CONFIG)
        (self.home / "config.toml").write_text(self._configuration())

    def _configuration(self) -> str:
        disabled = ", ".join(f'"{plugin}"' for plugin in DISABLED)
        return (
            "version = 2\n"
            f'root = "{self.home}/root"\n'
            f'state = "{self.home}/state"\n'
            f"disabled_plugins = [{disabled}]\n"
            "[grpc]\n"
            f'address = "{self.socket}"\n'
        )


async def _answers(runtime: Containerd) -> bool:
    try:
        await runtime.version()
    except RuntimeProblem:
        return False
    return True


@contextlib.asynccontextmanager
async def private_containerd(
    stack: Stack, home: Path, *, adopt: bool = False
) -> AsyncIterator[PrivateContainerd]:
    """A running containerd; afterwards nothing of it runs or is mounted, its files stay.

    What a killed predecessor left is ended first; with `adopt`, its containers go on here.
    """
    if adopt:
        await asyncio.to_thread(leftovers.end_daemon, home, stack.containerd)
    else:
        await asyncio.to_thread(leftovers.clear, home)
    daemon = PrivateContainerd(stack, home)
    try:
        await daemon.start()
        yield daemon
    finally:
        await tasks.finish(_end(daemon))


async def _end(daemon: PrivateContainerd) -> None:
    await daemon.stop()
    await asyncio.to_thread(leftovers.clear, daemon.home)
