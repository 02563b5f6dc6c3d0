"""Which Kubernetes runs on a node, and where it keeps what the installer has to know.

`config` is the file that containerd reads, `written` the one that an administrator writes: the
same file, or the template from which a distribution renders it. Paths are the node's own, without
the folder under which a pod may see them.
"""

from collections.abc import Callable
from pathlib import PurePosixPath as Path
from typing import Final

from schemas.base import Record

EMPTY_TEMPLATE: Final = '{{ template "base" . }}\n'
"""What k3s and RKE2 render their own configuration from, with room behind it."""
TEMPLATES: Final = {2: "config.toml.tmpl", 3: "config-v3.toml.tmpl"}


class Distribution(Record, frozen=True, kw_only=True):
    name: str
    config: Path
    written: Path
    skeleton: str
    """What the written file has to begin with where there is none yet."""
    once_written: tuple[Path, ...] = ()
    """Files that another version of the distribution wants instead."""
    containerd: tuple[Path, ...]
    """Where the program may be; the first that exists."""
    runc: tuple[Path, ...]
    services: tuple[str, ...]
    """What is to be restarted; those that the node does not have are skipped."""
    snap: bool = False


_SNAP: Final = Path("/var/snap/microk8s/current")

STANDARD: Final = Distribution(
    name="standard",
    config=Path("/etc/containerd/config.toml"),
    written=Path("/etc/containerd/config.toml"),
    skeleton="version = 2\n",
    containerd=(Path("/usr/bin/containerd"), Path("/usr/local/bin/containerd")),
    runc=(Path("/usr/bin/runc"), Path("/usr/sbin/runc"), Path("/usr/local/sbin/runc")),
    services=("containerd",),
)
MICROK8S: Final = Distribution(
    name="microk8s",
    config=_SNAP / "args/containerd.toml",
    written=_SNAP / "args/containerd-template.toml",
    skeleton="version = 2\n",
    containerd=(Path("/snap/microk8s/current/bin/containerd"), _SNAP / "bin/containerd"),
    runc=(Path("/snap/microk8s/current/bin/runc"), _SNAP / "bin/runc"),
    services=("microk8s.daemon-containerd",),
    snap=True,
)


def _rancher(name: str, programs: str, services: tuple[str, ...], template: str) -> Distribution:
    folder = Path(f"/var/lib/rancher/{name}")
    etc = folder / "agent/etc/containerd"
    return Distribution(
        name=name,
        config=etc / "config.toml",
        written=etc / template,
        once_written=tuple(etc / each for each in TEMPLATES.values() if each != template),
        skeleton=EMPTY_TEMPLATE,
        containerd=(folder / programs / "containerd",),
        runc=(folder / programs / "runc",),
        services=services,
    )


def k3s(template: str) -> Distribution:
    return _rancher("k3s", "data/current/bin", ("k3s", "k3s-agent"), template)


def rke2(template: str) -> Distribution:
    return _rancher("rke2", "bin", ("rke2-server", "rke2-agent"), template)


NAMES: Final = ("standard", "microk8s", "k3s", "rke2")


def found(exists: Callable[[Path], bool], version: Callable[[Path], int]) -> list[Distribution]:
    """What the node has, the special ones first: they bring a containerd of their own.

    `version` tells a configuration file's own; k3s and RKE2 name their template after it.
    """
    there = []
    if exists(_SNAP):
        there.append(MICROK8S)
    for make in (k3s, rke2):
        config = make(TEMPLATES[2]).config
        if exists(config.parent):
            there.append(make(TEMPLATES[max(2, version(config))]))
    if exists(STANDARD.config) or any(map(exists, STANDARD.containerd)):
        there.append(STANDARD)
    return there
