"""Where the programs of Kubernetes are: those that `scripts/kubernetes.sh` made, or given ones.

<kubernetes>/bin/kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl etcd
<kubernetes>/cni/bridge host-local loopback …
"""

import functools
import os
import subprocess
from pathlib import Path

import msgspec

PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
CNI_PLUGINS = ("bridge", "host-local", "loopback")
CNI_FOLDERS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))


class KubernetesMissing(Exception):
    """Programs of Kubernetes are not installed."""


class Assets(msgspec.Struct, frozen=True, kw_only=True):
    """The folders of the programs and of the network plugins."""

    programs: Path
    cni: Path
    given: bool
    """Not built here, so perhaps of another release."""

    def program(self, name: str) -> Path:
        return self.programs / name

    def dated(self, name: str, option: str) -> tuple[str, ...]:
        """An option that newer releases do without, if this program still knows it."""
        if self.given and f"{option.partition('=')[0]} " not in _help(self.program(name)):
            return ()
        return (option,)


@functools.cache
def _help(program: Path) -> str:
    return subprocess.check_output([str(program), "--help"], text=True, timeout=10)


def find_assets() -> Assets:
    """The programs in KUBEBUILDER_ASSETS if that is set, else the built ones."""
    built = _built()
    given = os.environ.get("KUBEBUILDER_ASSETS")
    programs = Path(given) if given else built / "bin"
    cni = next((at for at in (built / "cni", *CNI_FOLDERS) if not _missing(at, CNI_PLUGINS)), None)
    if missing := _missing(programs, PROGRAMS):
        raise KubernetesMissing(
            f"{programs} lacks {', '.join(missing)}; run scripts/kubernetes.sh, or name a folder "
            "that holds them in KUBEBUILDER_ASSETS"
        )
    if cni is None:
        raise KubernetesMissing(
            f"no network plugins ({', '.join(CNI_PLUGINS)}) in {built / 'cni'} nor in "
            f"{' nor in '.join(map(str, CNI_FOLDERS))}; run scripts/kubernetes.sh"
        )
    return Assets(programs=programs, cni=cni, given=given is not None)


def _built() -> Path:
    if configured := os.environ.get("KYBERNATE_KUBERNETES"):
        return Path(configured)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "kybernate" / "kubernetes"


def _missing(folder: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not os.access(folder / name, os.X_OK)]
