"""The CRIU that runc runs for a container, and what it can.

It is found as runc finds it: in the file system of the container's shim, by the shim's PATH, behind
the folder that the wrapper `kybernate-runc` puts first. Calls block: make them in a thread.
"""

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from node_worker import protowire
from node_worker.containerd.port import Container
from node_worker.processes import PROC

CHROOT: Final = shutil.which("chroot", path=f"{os.defpath}:/usr/sbin:/sbin") or "chroot"
_BINARY_NAME: Final = 6  # of containerd.runc.v1.Options
_FEATURE: Final = "limits_from_proc"
"""What deploy/criu adds."""
_TIMEOUT: Final = 10.0
_NOT_ASKED: Final = 125  # and what is above: chroot's own
_WRAPPERS_CRIU: Final = re.compile(r"^CRIU='([^']+)'$", re.MULTILINE)

log = logging.getLogger(__name__)


def takes_limits_from_proc(shim: int, container: Container, *, proc: Path = PROC) -> bool:
    """Whether it takes the limits of another user's process from /proc where the kernel refuses to
    tell it. One that cannot be asked is thought to: CRIU will tell.
    """
    folder = proc / str(shim)
    question = (CHROOT, str(folder / "root"), "criu", "check", "--feature", _FEATURE)
    nowhere = subprocess.DEVNULL
    try:
        asked = subprocess.run(
            question,
            env={"PATH": ":".join(_path(folder, container))},
            stdin=nowhere,
            stdout=nowhere,
            stderr=nowhere,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _believed(shim, error)
    if asked.returncode >= _NOT_ASKED:
        return _believed(shim, f"chroot ended with {asked.returncode}")
    return asked.returncode == 0


def _believed(shim: int, why: object) -> bool:
    log.warning("cannot ask the CRIU of process %d what it can: %s", shim, why)
    return True


def _path(shim: Path, container: Container) -> Iterator[str]:
    options = container.runtime_options
    runc = protowire.blob(protowire.decode(options.value), _BINARY_NAME) if options else None
    if runc and runc.startswith(b"/"):
        settings = shim / "root" / f"{os.fsdecode(runc)}.conf".lstrip("/")
        yield from _WRAPPERS_CRIU.findall(settings.read_text() if settings.is_file() else "")[-1:]
    for variable in (shim / "environ").read_bytes().split(b"\0"):
        if variable.startswith(b"PATH="):
            yield os.fsdecode(variable.removeprefix(b"PATH="))
