"""The product's image, made of what runs here: this Python, the packages it needs, this source.

It stands in for `deploy/images/Containerfile` where nothing builds images: the same programs under
the same names, on busybox.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from kybernate.embedded.kubernetes.images import pack
from kybernate.embedded.rootfs import fill_busybox
from kybernate.embedded.stack import Stack

NAME = "kybernate.io/kybernate:test"
ROOT = Path(__file__).parents[2]
SOURCES = ("schemas", "kybernate", "controller", "node_worker", "deploy")
EXTRAS = ("kubernetes",)
LEFT_OUT = shutil.ignore_patterns(
    *(
        "__pycache__",
        "test",
        "tests",
        "site-packages",
        "idlelib",
        "tkinter",
        "ensurepip",
        "lib2to3",
    ),
    "config-*",
)
LIBRARY = re.compile(r"(/\S+) \(0x")
PROGRAM = """\
#!/bin/sh
PYTHONPATH=/app:/packages PYTHONDONTWRITEBYTECODE=1 exec {python} -m kybernate.cli "$@"
"""


def make(target: Path, stack: Stack, scratch: Path) -> None:
    """An archive that containerd imports."""
    root = scratch / "root"
    root.mkdir()
    fill_busybox(root, stack.busybox)
    for name in SOURCES:
        shutil.copytree(ROOT / name, root / "app" / name, ignore=LEFT_OUT)
    _add_python(root)
    _add_packages(root / "packages")
    _add_programs(root, stack)
    _add_libraries(root)
    process = {"Entrypoint": ["/bin/kybernate"], "Env": ["PATH=/bin", "HOME=/tmp"]}
    pack(target, root, {NAME: process})


def _add_python(root: Path) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, root / library.relative_to("/"), ignore=LEFT_OUT)
    _copy(Path(sys.executable).resolve(), root)


def _add_packages(target: Path) -> None:
    for found in _needed("kybernate", EXTRAS, {}).values():
        for file in found.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                to = target / file
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(found.locate_file(file)), to)


def _needed(
    name: str, extras: Iterable[str], seen: dict[str, Distribution]
) -> dict[str, Distribution]:
    """What the package needs, and what that needs, and itself."""
    found = seen[name] = distribution(name)
    for text in found.requires or ():
        wanted = Requirement(text)
        marker = wanted.marker
        if marker and not any(marker.evaluate({"extra": one}) for one in ("", *extras)):
            continue
        if wanted.name not in seen:
            _needed(wanted.name, wanted.extras, seen)
    return seen


def _add_programs(root: Path, stack: Stack) -> None:
    program = root / "bin/kybernate"
    program.write_text(PROGRAM.format(python=Path(sys.executable).resolve()))
    program.chmod(0o755)
    shutil.copy(Path(sys.executable).with_name("nats-server"), root / "bin")
    shutil.copytree(stack.criu.parents[1], root / "opt/kybernate/criu")
    (root / "bin/tar").unlink()  # busybox's knows no extended attributes
    shutil.copy("/usr/bin/tar", root / "bin")


def _add_libraries(root: Path) -> None:
    """Whatever the linker would load, at the place where it looks for it."""
    files = [path for path in root.rglob("*") if path.suffix == ".so" or ".so." in path.name]
    for library in sorted(set(_loaded([*files, root / "bin/tar", Path(sys.executable).resolve()]))):
        if library.exists() and not (root / library.relative_to("/")).exists():
            _copy(library, root)


def _loaded(files: list[Path]) -> Iterator[Path]:
    for at in range(0, len(files), 100):
        said = subprocess.run(
            ["ldd", *files[at : at + 100]], capture_output=True, text=True, timeout=60, check=False
        )
        yield from map(Path, LIBRARY.findall(said.stdout))


def _copy(file: Path, root: Path) -> None:
    to = root / os.path.relpath(file, "/")
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, to)
