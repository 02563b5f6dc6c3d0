"""Processes that outlive the command that starts them, found again by their environment.

Everything that belongs to a home (the control plane, or a node) carries it in its environment, and
its containers' cgroups are named after it: `leftovers.clear` ends them all, whatever was killed
before. A daemon also carries its own name, so that a recycled pid is not taken for it.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from kybernate.embedded import leftovers
from kybernate.embedded.kubernetes.commands import Word
from kybernate.embedded.kubernetes.waiting import until

NAME = "KYBERNATE_DAEMON"
STOP_TIMEOUT = 10.0
FLAGS = 5
"""Of /proc/PID/stat, counted from behind the state."""
EXITING = 0x4
KERNELS_OWN = 0x200000
"""The kernel's PF_EXITING and PF_KTHREAD."""
LAUNCH = 'log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!'
"""The shell ends at once, so whoever reaps orphans reaps the daemon, and `$!` is its pid."""


class Daemon(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    home: Path
    command: tuple[Word, ...]
    env: Mapping[str, str] = {}

    @property
    def log(self) -> Path:
        return self.home / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """Of the process that runs, or has not let go of everything yet, if there is one."""
        with contextlib.suppress(OSError, ValueError):  # never started, or ended meanwhile
            pid = int(self._pid_file.read_text())
            if self._is_ours(pid) or _is_ending(pid):
                return pid
        return None

    def start(self) -> None:
        """Start it unless it runs."""
        if self.pid is not None:
            return
        words = ["sh", "-c", LAUNCH, "sh", self.log, *self.command]
        started = subprocess.run(
            words, check=True, stdout=subprocess.PIPE, env=self._environment(), timeout=STOP_TIMEOUT
        )
        self._pid_file.write_bytes(started.stdout)

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait until it has; kill it when that takes too long."""
        with contextlib.suppress(TimeoutError):  # then it is killed below
            await self._gone_after(how)
        await self._gone_after(signal.SIGKILL)

    def last_words(self, lines: int = 12) -> str:
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join((f"the end of {self.log}:", *said.splitlines()[-lines:]))

    def _is_ours(self, pid: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except ProcessLookupError:  # its memory is gone
            return False
        if environment == [b""]:  # for a moment, when it turns into another program
            return not _flags(pid) & (EXITING | KERNELS_OWN)
        return all(f"{name}={value}".encode() in environment for name, value in self._marks())

    async def _gone_after(self, how: signal.Signals) -> None:
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, how)
        await until(self._ended, timeout=STOP_TIMEOUT, every=0.02)

    async def _ended(self) -> bool:
        return self.pid is None

    @property
    def _pid_file(self) -> Path:
        return self.home / f"{self.name}.pid"

    def _marks(self) -> Sequence[tuple[str, str]]:
        return ((leftovers.MARK, str(self.home)), (NAME, self.name))

    def _environment(self) -> dict[str, str]:
        ours = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.home)}
        return {**ours, **self.env, **dict(self._marks())}


def _is_ending(pid: int) -> bool:
    """Its memory is gone, and with it the environment; its sockets may still be there."""
    process = Path(f"/proc/{pid}")
    is_zombie = _status(pid)[0] == "Z" and len(list((process / "task").iterdir())) == 1
    return bool(_flags(pid) & EXITING) and not is_zombie


def _flags(pid: int) -> int:
    return int(_status(pid)[1 + FLAGS])


def _status(pid: int) -> list[str]:
    """From the state on: before it stands a name that can be anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
