"""Root filesystems without a registry: small trees, committed as snapshots to prepare from.

`busybox` holds one static program and its links. `python` is empty but for mount points: the
host's system folders and Python are bind-mounted read-only into it, listed in the spec, so that
CRIU knows them.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from kybernate.embedded.oci import Bind

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
FOLDERS = ("dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "var")
ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n",
    "etc/group": "root:x:0:\nuser:x:1000:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}


class HostPython(msgspec.Struct, frozen=True, kw_only=True):
    """The host's Python, as a container sees it: links to make, folders to mount."""

    links: dict[str, str]
    folders: tuple[Path, ...]
    within: tuple[Path, ...]
    """What is mounted inside the folders."""

    @property
    def binds(self) -> tuple[Bind, ...]:
        return tuple(Bind(source=path, target=str(path)) for path in (*self.folders, *self.within))


def host_python() -> HostPython:
    system = [Path(path) for path in SYSTEM if os.path.lexists(path)]
    links = {str(path): str(path.readlink()) for path in system if path.is_symlink()}
    folders = [path for path in system if not path.is_symlink()]
    for prefix in (Path(sys.base_prefix), Path(sys.prefix)):
        if not any(prefix.is_relative_to(folder) for folder in folders):
            folders.append(prefix)
    points = mount_points(Path("/proc/self/mountinfo").read_text())
    return HostPython(links=links, folders=tuple(folders), within=mounted_below(folders, points))


def mount_points(mountinfo: str) -> list[Path]:
    fields = (line.split()[4] for line in mountinfo.splitlines())
    return [Path(field.encode().decode("unicode_escape")) for field in fields]


def mounted_below(folders: Sequence[Path], points: Iterable[Path]) -> tuple[Path, ...]:
    """Mounts inside the folders, such as a driver's libraries in a machine that is a container.

    They have to be named one by one: CRIU refuses mounts that the spec does not list.
    """
    below = {point for point in points if any(folder in point.parents for folder in folders)}
    return tuple(sorted(below))


def fill_busybox(root: Path, busybox: Path) -> None:
    _fill_common(root)
    (root / "bin").mkdir()
    shutil.copy(busybox, root / "bin/busybox")
    listing = subprocess.run(
        [busybox, "--list"], check=True, capture_output=True, text=True, timeout=10
    )
    for applet in set(listing.stdout.split()) - {"busybox"}:
        (root / "bin" / applet).symlink_to("busybox")


def fill_python(root: Path, python: HostPython) -> None:
    _fill_common(root)
    for folder in python.folders:
        (root / folder.relative_to("/")).mkdir(parents=True, exist_ok=True)
    for link, target in python.links.items():
        (root / Path(link).relative_to("/")).symlink_to(target)


def _fill_common(root: Path) -> None:
    root.chmod(0o755)
    for folder in FOLDERS:
        (root / folder).mkdir(mode=0o755)
    (root / "tmp").chmod(0o1777)
    for name, text in ACCOUNTS.items():
        (root / name).write_text(text)
