"""The move between two nodes with cgroup v2 alone, mounted so for it whatever this host has."""

import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNIFIED = 'umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'


async def test_goes_to_the_other_node_and_back() -> None:
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "sh", "-c", UNIFIED, "sh"),
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
        "tests/integration/test_two_nodes.py",
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        told, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, told.decode()
