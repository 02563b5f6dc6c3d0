"""Puts the OCI runtime of pods on a node and its entries into containerd's configuration.

First everything is planned, then written, then `containerd config dump` has to know the new
runtimes and everything that it knew before; else all is taken back. Only a changed configuration
makes a restart necessary. Uninstalling is the same way back.
"""

import importlib.resources
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from node_worker.install import configuration, distributions, files
from node_worker.install.configuration import Configuration, Runtime, Unusable
from node_worker.install.distributions import Distribution
from node_worker.install.files import Change
from node_worker.install.node import InstallProblem, Node
from schemas.base import Record

WRAPPER: Final = "kybernate-runc"
GPU_WRAPPER: Final = "kybernate-gpu-runc"
RUNTIMES: Final = {"kybernate": WRAPPER, "kybernate-gpu": GPU_WRAPPER}
NVIDIA: Final = (
    PurePosixPath("/usr/bin/nvidia-container-runtime"),
    PurePosixPath("/usr/local/nvidia/toolkit/nvidia-container-runtime"),
)
STATES: Final = (
    "/run/containerd",
    "/run/k3s/containerd",
    "/var/snap/microk8s/common/run/containerd",
)
SHIMS: Final = "io.containerd.runtime.v2.task/*/*/options.json"


class Wanted(Record, frozen=True, kw_only=True):
    """What the administrator chose."""

    root: Path = Path("/")
    """Where the node's file system is seen."""
    distribution: str = ""
    config: PurePosixPath | None = None
    """containerd's configuration, where it is not at the usual place."""
    containerd: PurePosixPath | None = None
    """The program, where it is not at the usual place."""
    prefix: PurePosixPath = PurePosixPath("/opt/kybernate")
    state: PurePosixPath = PurePosixPath("/run/kybernate")
    runc: PurePosixPath | None = None
    criu: Path | None = None
    """A folder with bin/criu and, if need be, lib/: it is copied."""


class Plan(Record, frozen=True, kw_only=True):
    programs: tuple[Change, ...] = ()
    entries: tuple[Change, ...] = ()
    """What containerd has to be restarted for."""

    @property
    def changes(self) -> tuple[Change, ...]:
        return self.programs + self.entries


def wrapper() -> bytes:
    """The wrapper, as the package brings it or as it stands in the source tree."""
    packaged = importlib.resources.files("node_worker").joinpath("runtime", WRAPPER)
    if packaged.is_file():
        return packaged.read_bytes()
    return (Path(__file__).parents[2] / "deploy/runtime" / WRAPPER).read_bytes()


class Installer:
    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._node = Node(wanted.root)
        self.distribution = self._chosen()
        self._bin = wanted.prefix / "bin"

    def _chosen(self) -> Distribution:
        node, wanted = self._node, self._wanted
        found = distributions.found(node.exists, lambda path: node.configuration(path).version)
        named = [each for each in found if wanted.distribution in {"", each.name}]
        if not named and wanted.config is None:
            raise InstallProblem(
                f"found no {wanted.distribution or 'containerd'} on this node (its files are "
                f"looked for below {wanted.root}); name containerd's configuration with --config"
            )
        chosen = named[0] if named else distributions.STANDARD
        if wanted.containerd is not None:
            chosen = msgspec.structs.replace(chosen, containerd=(wanted.containerd,))
        if (config := wanted.config) is None:
            return chosen
        skeleton = distributions.STANDARD.skeleton
        return msgspec.structs.replace(
            chosen, config=config, written=config, once_written=(), skeleton=skeleton
        )

    # planning

    def install(self) -> Plan:
        return Plan(programs=tuple(self._programs()), entries=tuple(self._entries()))

    def uninstall(self) -> Plan:
        gone = (files.planned(path, None) for path in self._installed())
        return Plan(
            programs=tuple(change for changes in gone for change in changes),
            entries=tuple(self._without_entries()),
        )

    def in_use(self) -> list[str]:
        """Containers that run by the wrapper: without it nobody could end them."""
        mark = f"{self._bin}/".encode()
        states = dict.fromkeys(filter(None, (self._effective().state, *STATES)))
        patterns = (PurePosixPath(state) / SHIMS for state in states)
        options = (
            self._node.at(path) for pattern in patterns for path in self._node.matching(pattern)
        )
        return [path.parent.name for path in options if mark in (files.read(path) or b"")]

    def _entries(self) -> Iterator[Change]:
        said, tables = self._said(), self._tables()
        if said.disabled:
            raise InstallProblem(
                f"{self.distribution.config} disables containerd's CRI plugin, so Kubernetes does "
                "not use this containerd; take it out of `disabled_plugins`, or name another "
                "one with --config"
            )
        folder = configuration.drop_in_folder(said)
        if folder is not None and self._node.exists(folder):
            path = folder / configuration.DROP_IN
            yield from self._text(path, configuration.drop_in(said.version, tables))
            return
        path = self._carrier(said)
        skeleton = self.distribution.skeleton
        text = configuration.with_block(self._node.text(path), tables, skeleton)
        if skeleton != distributions.EMPTY_TEMPLATE:
            _see_that_it_is_good(text, path)
        yield from self._text(path, text)

    def _tables(self) -> str:
        said, base = self._said(), self._effective().base
        runtimes = (
            Runtime(name=name, binary=self._bin / program) for name, program in RUNTIMES.items()
        )
        tables = configuration.entries(said.version, runtimes, base)
        if self._section(said).runtimes:
            return tables
        return configuration.default_entry(said.version, base) + tables

    def _section(self, said: Configuration) -> Configuration:
        """The file whose section of the plugin is the one that counts."""
        carrier = self._carrier(said)
        return said if carrier == self.distribution.written else self._node.configuration(carrier)

    def _without_entries(self) -> Iterator[Change]:
        said, known = self._said(), self.distribution
        if folder := configuration.drop_in_folder(said):
            yield from files.planned(self._node.at(folder / configuration.DROP_IN), None)
        for path in dict.fromkeys((known.written, self._carrier(said), *known.once_written)):
            if (before := self._node.text(path)) is not None:
                yield from self._text(path, configuration.without_block(before, known.skeleton))

    def _text(self, path: PurePosixPath, text: str | None) -> list[Change]:
        return files.planned(self._node.at(path), None if text is None else text.encode())

    def _said(self) -> Configuration:
        """A template may hold what is no TOML: the rendered file tells more, once there is one."""
        known = self.distribution
        rendered = self._node.exists(known.config)
        return self._node.configuration(known.config if rendered else known.written)

    def _effective(self) -> Configuration:
        """With what containerd adds by itself and from imported files."""
        dump = self._node.dump(self.distribution, self.distribution.config)
        return configuration.read(dump) if dump else self._said()

    def _carrier(self, said: Configuration) -> PurePosixPath:
        """The file that has the last word: containerd 1 takes a plugin's section from one alone."""
        carrier = self.distribution.written
        if said.version >= max(configuration.SECTIONS):
            return carrier
        for pattern in said.imports:
            for path in self._node.matching(self.distribution.config.parent / pattern):
                if configuration.holds_section(self._node.text(path) or ""):
                    carrier = path
        return carrier

    def _programs(self) -> Iterator[Change]:
        runc = self._runc()
        folder = self._node.at(self._bin)
        for name, program in ((WRAPPER, runc), (GPU_WRAPPER, self._node.first(NVIDIA) or runc)):
            yield from files.planned(folder / name, wrapper(), 0o755)
            yield from files.planned(folder / f"{name}.conf", self._settings(program))
        if (criu := self._wanted.criu) is not None:
            for path in _criu(criu):
                target = self._node.at(self._wanted.prefix / "criu") / path.relative_to(criu)
                yield from files.planned(target, path.read_bytes(), 0o755)

    def _settings(self, program: PurePosixPath) -> bytes:
        criu = self._wanted.prefix / "criu/bin" if self._wanted.criu else ""
        state = self._wanted.state
        places = f"RUNC='{program}'\nSTATE='{state}'\nCRIU='{criu}'\n"
        return f"{places}TIMEOUT=100\nWORKER_WAIT=10\n".encode()

    def _runc(self) -> PurePosixPath:
        if self._wanted.runc is not None:
            return self._wanted.runc
        named = str(self._effective().base.get("options", {}).get("BinaryName", ""))
        candidates = (PurePosixPath(named),) if named.startswith("/") else self.distribution.runc
        if found := self._node.first(candidates):
            return found
        looked = ", ".join(map(str, candidates))
        raise InstallProblem(f"found no runc on this node ({looked}); name it with --runc")

    def _installed(self) -> Iterator[Path]:
        folder = self._node.at(self._bin)
        for name in RUNTIMES.values():
            yield from (folder / name, folder / f"{name}.conf")
        yield from _criu(self._node.at(self._wanted.prefix / "criu"))

    # acting

    def carry_out(self, plan: Plan, *, restart: bool = True) -> tuple[str, ...]:
        """Write and check; what containerd would not like is taken back. The services restarted."""
        before = self._node.dump(self.distribution, self.distribution.config)
        removes = all(change.after is None for change in plan.programs)
        first, then = (plan.entries, plan.programs) if removes else (plan.programs, plan.entries)
        files.make((*first, *then))
        try:
            if plan.entries:
                self._check(before)
        except BaseException:
            files.take_back((*first, *then))
            raise
        finally:
            self._clear_folders()
        return self._node.restart(self.distribution) if plan.entries and restart else ()

    def _check(self, before: str) -> None:
        after = self._new_dump()
        if not after:
            return
        if changed := configuration.changed(before, after):
            names = ", ".join(changed[:5])
            raise InstallProblem(f"containerd would read other settings than before: {names}")
        missing = set(RUNTIMES) - set(configuration.read(after).runtimes)
        if missing and self._has_entries():
            raise InstallProblem(
                f"containerd would not find the runtimes {', '.join(sorted(missing))} in its "
                "configuration; one of version 1 has to be made a newer one first: see "
                "`containerd config migrate`"
            )

    def _new_dump(self) -> str:
        """What containerd makes of the new configuration, rendered already or not."""
        known = self.distribution
        config = self._node.at(known.config)
        if known.written == known.config or not config.exists():
            return self._node.dump(known, known.config)
        tables = self._tables() if self._has_entries() else ""
        with tempfile.NamedTemporaryFile("w", dir=config.parent, prefix=".kybernate-") as draft:
            draft.write(configuration.rendered(config.read_text(), tables))
            draft.flush()
            return self._node.dump(known, self._node.inside(Path(draft.name)))

    def _has_entries(self) -> bool:
        return bool(tuple(self._without_entries()))

    def _clear_folders(self) -> None:
        prefix = self._node.at(self._wanted.prefix)
        within = ("bin", "criu/bin", "criu/lib", "criu")
        files.clear_folders((*(prefix / each for each in within), prefix))


def _see_that_it_is_good(text: str, path: PurePosixPath) -> None:
    try:
        configuration.read(text)
    except Unusable as error:
        raise InstallProblem(
            f"{path} would not be good with the new entries: {error}; does somebody else's entry "
            "`kybernate` stand in it?"
        ) from error


def _criu(folder: Path) -> Iterable[Path]:
    return [path for part in ("bin", "lib") for path in sorted((folder / part).glob("*"))]
