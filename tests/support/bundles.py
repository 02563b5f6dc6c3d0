"""OCI bundles as containerd makes them for pods, and the runtime that is called for them."""

import asyncio
import contextlib
import os
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kybernate.embedded import leftovers
from kybernate.embedded.oci import Place, Workload, spec
from kybernate.embedded.rootfs import fill_busybox
from kybernate.embedded.stack import find_stack

REPOSITORY = Path(__file__).parents[2]
WRAPPER = REPOSITORY / "deploy/runtime/kybernate-runc"
COUNTING = Workload(
    args=("/bin/sh", "-c", 'i=0; while :; do i=$((i + 1)); echo "Loop $i"; sleep 0.02; done')
)
CRIU_CONFIG = "network-lock skip\ntcp-established\nfile-locks\n"


class Said(msgspec.Struct, frozen=True, kw_only=True):
    code: int
    stdout: str
    stderr: str


async def until(seen: Callable[[], bool]) -> None:
    """Look again and again; a minute is given up after."""
    async with asyncio.timeout(60):
        while True:
            if seen():
                return
            await asyncio.sleep(0.02)


class Pipe:
    """The output of a container."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        self._text = ""
        os.set_blocking(self._reader, False)

    async def counted(self, least: int) -> list[int]:
        """The numbers so far, as soon as one is as large; a last line may be incomplete."""
        await until(lambda: max(self.numbers(), default=0) >= least)
        return self.numbers()

    def numbers(self) -> list[int]:
        with contextlib.suppress(BlockingIOError):  # nothing new
            while data := os.read(self._reader, 1 << 16):
                self._text += data.decode()
        return [int(line.removeprefix("Loop ")) for line in self._text.split("\n")[:-1]]

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.writer)


class Host:
    """A folder with bundles, an installed wrapper, runc's state, and all that it takes to run."""

    def __init__(self, home: Path, shell: Sequence[str] = ()) -> None:
        self.home = home
        self.state = home / "k"
        self.log = home / "log.json"
        self._stack = find_stack()
        self._shell = list(shell)
        self._root = leftovers.runc_root(home)
        self._root.mkdir()
        self.wrapper = home / "kybernate-runc"
        shutil.copy(WRAPPER, self.wrapper)
        self.configure(CRIU=self._stack.criu.parent)
        (home / "criu.conf").write_text(CRIU_CONFIG)

    @property
    def runc(self) -> Path:
        return self._stack.runc

    @property
    def busybox(self) -> Path:
        return self._stack.busybox

    def configure(self, **values: object) -> None:
        places = {"RUNC": self.runc, "STATE": self.state, "CRIU": ""}
        settings = {**places, "TIMEOUT": 60, "WORKER_WAIT": 0, **values}
        lines = (f"{name}='{value}'\n" for name, value in settings.items())
        (self.home / "kybernate-runc.conf").write_text("".join(lines))

    def bundle(
        self, id: str, annotations: Mapping[str, str] = {}, *, memory: int | None = None
    ) -> Path:
        folder = self.home / "bundles" / id
        (folder / "rootfs").mkdir(parents=True)
        fill_busybox(folder / "rootfs", self.busybox)
        place = Place(
            id=id,
            cgroup=f"{leftovers.cgroup_parent(self.home)}/{id}",
            busybox=self.busybox,
            criu_config=self.home / "criu.conf",
        )
        workload = msgspec.structs.replace(COUNTING, memory_bytes=memory)
        value: dict[str, Any] = msgspec.json.decode(spec(workload, place).value)
        value["annotations"].update(annotations)
        (folder / "config.json").write_bytes(msgspec.json.encode(value))
        return folder

    async def call(self, *arguments: str, output: Pipe | None = None) -> Said:
        """The wrapper, called as containerd calls it."""
        return await self._run([*self._shell, str(self.wrapper)], arguments, output)

    async def bare(self, *arguments: str, output: Pipe | None = None) -> Said:
        """runc itself."""
        return await self._run([str(self.runc)], arguments, output)

    async def create(self, id: str, output: Pipe | None = None) -> Said:
        bundle, pid_file = self.home / "bundles" / id, self.home / f"{id}.pid"
        return await self.call(
            "create", "--bundle", str(bundle), "--pid-file", str(pid_file), id, output=output
        )

    def memory_limit(self, id: str) -> int:
        """What the kernel lets the container have."""
        cgroup = f"{leftovers.cgroup_parent(self.home)}/{id}".lstrip("/")
        hierarchies = (leftovers.CGROUPS / "memory" / cgroup, leftovers.CGROUPS / cgroup)
        files = [
            folder / name
            for folder in hierarchies
            for name in ("memory.limit_in_bytes", "memory.max")
        ]
        return int(next(file for file in files if file.exists()).read_text())

    async def status(self, id: str) -> str:
        said = await self.call("state", id)
        assert said.code == 0, said.stderr
        return str(msgspec.json.decode(said.stdout)["status"])

    async def dumped(self, id: str, images: Path) -> None:
        """A running container's images; it has ended then."""
        images.mkdir(mode=0o700)
        work = str(images.with_name("dump"))
        said = await self.call("checkpoint", "--image-path", str(images), "--work-path", work, id)
        assert said.code == 0, said.stderr
        said = await self.call("delete", "--force", id)
        assert said.code == 0, said.stderr

    async def _run(
        self, program: Sequence[str], arguments: Sequence[str], output: Pipe | None
    ) -> Said:
        with (self.home / "stderr").open("w+b") as stderr:
            process = await asyncio.create_subprocess_exec(
                *program,
                *("--root", str(self._root), "--log", str(self.log), "--log-format", "json"),
                *arguments,
                stdin=DEVNULL,
                stdout=output.writer if output else PIPE,
                stderr=output.writer if output else stderr,
                env=self._environment(),
            )
            try:
                stdout, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            stderr.seek(0)
            said = stderr.read().decode()
        return Said(code=process.returncode or 0, stdout=(stdout or b"").decode(), stderr=said)

    def _environment(self) -> dict[str, str]:
        path = f"{self._stack.criu.parent}:{os.environ['PATH']}"
        if self._shell and "busybox" in self._shell[0]:
            path = str(self._applets())
        return {"PATH": path, leftovers.MARK: str(self.home)}

    def _applets(self) -> Path:
        """A PATH of busybox alone, but for the tar that CRIU calls for the contents of a tmpfs."""
        folder = self.home / "applets"
        if not folder.exists():
            folder.mkdir()
            for name in ("cut", "date", "grep", "mkfifo", "rm", "sed", "sleep", "tail", "tr"):
                (folder / name).symlink_to(self.busybox)
            for name in ("tar", "gzip"):
                (folder / name).symlink_to(shutil.which(name) or name)
        return folder


@contextlib.contextmanager
def bundle_host(home: Path, shell: Sequence[str] = ()) -> Iterator[Host]:
    """Afterwards nothing runs, is mounted or has a cgroup."""
    try:
        yield Host(home, shell)
    finally:
        leftovers.clear(home)
