"""The node that is changed: its files below the folder where they are seen, its programs."""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from node_worker.install import configuration, files
from node_worker.install.configuration import Configuration, Unusable
from node_worker.install.distributions import Distribution

TIMEOUT: Final = 60.0
RESTART_TIMEOUT: Final = 300.0


class InstallProblem(Exception):
    """The node cannot be changed as wanted; it is as it was."""


class Node:
    def __init__(self, root: Path) -> None:
        self.root = root

    def at(self, path: PurePosixPath) -> Path:
        """Where the node's path is seen from here."""
        return self.root / path.relative_to("/")

    def inside(self, path: Path) -> PurePosixPath:
        """The same the other way."""
        return PurePosixPath("/") / path.relative_to(self.root)

    def exists(self, path: PurePosixPath) -> bool:
        return self.at(path).exists()

    def first(self, candidates: Iterable[PurePosixPath]) -> PurePosixPath | None:
        return next((path for path in candidates if self.exists(path)), None)

    def matching(self, pattern: PurePosixPath) -> list[PurePosixPath]:
        """The files of a pattern as it stands in `imports`."""
        found = self.root.glob(str(pattern.relative_to("/")))
        return [self.inside(path) for path in sorted(found)]

    def text(self, path: PurePosixPath) -> str | None:
        content = files.read(self.at(path))
        try:
            return None if content is None else content.decode()
        except UnicodeDecodeError as error:
            raise InstallProblem(f"cannot extend {path}: it is no UTF-8 ({error})") from error

    def configuration(self, path: PurePosixPath) -> Configuration:
        """What a file says, or would say if it were there, without our entries."""
        text = self.text(path)
        if text is None:
            return Configuration(version=2)
        try:
            return configuration.read_without_block(text)
        except Unusable as error:
            raise InstallProblem(f"cannot extend {path}: {error}") from error

    def dump(self, distribution: Distribution, config: PurePosixPath) -> str:
        """What containerd makes of a configuration; nothing where there is none to ask."""
        program = self.first(distribution.containerd)
        if program is None or not self.exists(config):
            return ""
        said = self.run([str(program), "--config", str(config), "config", "dump"])
        if said.returncode:
            raise InstallProblem(f"containerd does not read {config}: {said.stderr.strip()}")
        return said.stdout

    def restart(self, distribution: Distribution) -> tuple[str, ...]:
        """The services that run, restarted."""
        if distribution.snap:
            running = distribution.services if self.run(["snap", "list"]).returncode == 0 else ()
        else:
            running = tuple(filter(self._is_active, distribution.services))
        command = ["snap" if distribution.snap else "systemctl", "restart", *running]
        if running and (said := self.run(command, timeout=RESTART_TIMEOUT)).returncode:
            raise InstallProblem(
                f"`{' '.join(command)}` failed: {said.stderr.strip()}; the entries are written, "
                "`kybernate node uninstall` takes them out"
            )
        return running

    def _is_active(self, service: str) -> bool:
        return self.run(["systemctl", "is-active", "--quiet", service]).returncode == 0

    def run(
        self, command: Sequence[str], *, timeout: float = TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """One of the node's programs; 127 for one that it does not have."""
        inside = () if self.root == Path("/") else ("chroot", str(self.root))
        try:
            return subprocess.run(
                [*inside, *command], capture_output=True, text=True, timeout=timeout, check=False
            )
        except FileNotFoundError as error:
            return subprocess.CompletedProcess(command, 127, "", str(error))
        except subprocess.TimeoutExpired as error:
            raise InstallProblem(f"`{' '.join(command)}` did not end in {timeout:.0f} s") from error
