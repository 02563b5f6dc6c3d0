"""The host's setting is changed for a while only, whoever else changes it and whoever dies."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from node_worker.gpu.hugepages import huge_pages, put_back, setting


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """Stands for the kernel's file, which shows what it was told: see `shown`."""
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never")
    return path


def shown(kernel: Path) -> str:
    """The value in force: a plain file holds what was written last, the kernel brackets it."""
    return setting(kernel) or kernel.read_text()


async def test_is_on_inside_and_put_back_afterwards(tmp_path: Path, kernel: Path) -> None:
    async with huge_pages(tmp_path / "state", kernel) as on:
        assert on
        assert shown(kernel) == "always"
        show_as_the_kernel(kernel)

    assert shown(kernel) == "madvise"


async def test_the_last_to_leave_puts_it_back(tmp_path: Path, kernel: Path) -> None:
    async with huge_pages(tmp_path / "state", kernel):
        show_as_the_kernel(kernel)
        async with huge_pages(tmp_path / "state", kernel):
            pass
        assert shown(kernel) == "always"

    assert shown(kernel) == "madvise"


async def test_is_put_back_after_a_failure(tmp_path: Path, kernel: Path) -> None:
    async def fail() -> None:
        async with huge_pages(tmp_path / "state", kernel):
            show_as_the_kernel(kernel)
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await fail()

    assert shown(kernel) == "madvise"


async def test_a_host_with_huge_pages_keeps_them(tmp_path: Path, kernel: Path) -> None:
    show(kernel, "[always] madvise never")

    async with huge_pages(tmp_path / "state", kernel) as on:
        assert on

    assert shown(kernel) == "always"


async def test_a_host_without_the_setting_goes_without(tmp_path: Path) -> None:
    async with huge_pages(tmp_path / "state", tmp_path / "none") as on:
        assert not on


async def test_a_host_that_forbids_it_goes_without(tmp_path: Path, kernel: Path) -> None:
    blocked = tmp_path / "state"
    blocked.write_text("a file where the folder should be")

    async with huge_pages(blocked, kernel) as on:
        assert not on

    assert shown(kernel) == "madvise"


async def test_what_a_killed_worker_left_is_put_back(tmp_path: Path, kernel: Path) -> None:
    script = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from node_worker.gpu.hugepages import huge_pages\n"
        "async def main():\n"
        "    async with huge_pages(Path(sys.argv[1]), Path(sys.argv[2])):\n"
        "        os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(tmp_path / "state"), str(kernel)]
    killed = await asyncio.to_thread(subprocess.run, command, cwd=root, check=False)
    assert killed.returncode == -9
    show_as_the_kernel(kernel)
    assert shown(kernel) == "always"

    assert put_back(tmp_path / "state", kernel)

    assert shown(kernel) == "madvise"
    assert not put_back(tmp_path / "state", kernel)


async def test_what_somebody_else_chose_meanwhile_stays(tmp_path: Path, kernel: Path) -> None:
    async with huge_pages(tmp_path / "state", kernel):
        show(kernel, "always madvise [never]")

    assert shown(kernel) == "never"


def show_as_the_kernel(kernel: Path) -> None:
    """What the kernel's file reads like once `always` was written to it."""
    assert kernel.read_text() == "always"
    show(kernel, "[always] madvise never")


def show(kernel: Path, text: str) -> None:
    kernel.write_text(text)
