"""Mounts for tests that need a file system of their own."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[Path]:
    """`mount ARGUMENTS PLACE` for as long as it is needed."""
    subprocess.run(["mount", *arguments, str(place)], check=True)
    try:
        yield place
    finally:
        unmount(place)


def unmount(place: Path) -> None:
    """Somebody else who looks at all mounts just now can make one busy for a moment."""
    end = time.monotonic() + 30
    while True:
        done = subprocess.run(["umount", str(place)], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
        if "busy" not in done.stderr or time.monotonic() > end:
            raise OSError(f"umount {place}: {done.stderr}")
        time.sleep(0.05)
