"""A dump is watched: it is left alone while it gets on, and ended when it does not."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_worker import criu_process
from node_worker.containerd.port import DumpOptions, RuntimeUnavailable
from node_worker.dump import dump
from node_worker.faults import Refused
from schemas import reasons
from tests.support.workshop import Workshop, target

LOG = "(00.01) Error (criu/mount.c:1): mnt: FS mnt ./x dev 0x1 root / unsupported id 1\n"
CRIU = "import os, sys, time; f = open(sys.argv[2], 'w'); print('.', flush=True); time.sleep(600)"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    shop = Workshop(tmp_path)
    yield shop
    shop.close()


def options(folder: Path) -> DumpOptions:
    for name in ("images", "work"):
        (folder / name).mkdir()
    return DumpOptions(image_path=str(folder / "images"), work_path=str(folder / "work"))


@pytest.fixture
def criu(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like a CRIU at work in the folder."""
    given = options(tmp_path)
    log = Path(given.work_path) / "dump.log"
    process = subprocess.Popen(
        [sys.executable, "-c", CRIU, "criu", str(log)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def given(folder: Path) -> DumpOptions:
    return DumpOptions(image_path=str(folder / "images"), work_path=str(folder / "work"))


async def test_one_that_gets_on_is_left_alone(shop: Workshop, tmp_path: Path) -> None:
    await shop.start()
    sizes: list[int] = []
    shop.runtime.delay("checkpoint", 0.6)
    wanted = options(tmp_path)
    growing = asyncio.create_task(grow(Path(wanted.image_path) / "growing"))
    await dump(shop.runtime, target(), wanted, grown=sizes.append, stalled=0.3)
    growing.cancel()
    assert len(sizes) > 1
    assert sizes == sorted(sizes)


async def grow(path: Path) -> None:
    while True:
        with path.open("ab") as file:
            file.write(b"x" * 100)
        await asyncio.sleep(0.02)


async def test_one_that_does_not_get_on_is_ended(
    shop: Workshop, tmp_path: Path, criu: subprocess.Popen[bytes]
) -> None:
    await shop.start()
    shop.runtime.delay("checkpoint", 600)
    with pytest.raises(Refused, match="wrote nothing for") as told:
        await dump(shop.runtime, target(), given(tmp_path), grown=lambda _: None, stalled=0.2)
    assert told.value.failure.reason == reasons.DUMP_FAILED
    assert criu.wait(10) < 0


async def test_a_failure_in_the_words_of_the_log(shop: Workshop, tmp_path: Path) -> None:
    await shop.start()
    shop.runtime.make_undumpable("c1", LOG)
    with pytest.raises(Refused) as told:
        await dump(shop.runtime, target(), options(tmp_path), grown=lambda _: None)
    assert told.value.failure.reason == reasons.CANNOT_BE_CHECKPOINTED
    assert "unsupported id" in told.value.failure.message


async def test_a_full_disk_that_the_log_could_not_tell(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.start()
    shop.runtime.make_undumpable("c1", "(00.01) Error (criu/cr-dump.c:1): Dumping FAILED.\n")
    monkeypatch.setattr("node_worker.dump.LEAST_BYTES", 1 << 62)
    with pytest.raises(Refused, match="is full") as told:
        await dump(shop.runtime, target(), options(tmp_path), grown=lambda _: None)
    assert told.value.failure.reason == reasons.DISK_FULL


async def test_containerd_that_goes_away_is_told_as_that(shop: Workshop, tmp_path: Path) -> None:
    await shop.start()
    shop.runtime.fail("checkpoint", RuntimeUnavailable("gone"))
    with pytest.raises(RuntimeUnavailable):
        await dump(shop.runtime, target(), options(tmp_path), grown=lambda _: None)


async def test_finds_criu_by_what_it_holds_open(
    tmp_path: Path, criu: subprocess.Popen[bytes]
) -> None:
    assert criu_process.working_in(tmp_path / "work") == (criu.pid,)
    assert criu_process.working_in(tmp_path / "images") == ()
    await criu_process.end_in(tmp_path / "images")
    assert criu.poll() is None
    waiting = asyncio.create_task(asyncio.to_thread(criu.wait))  # else it stays as a zombie
    await criu_process.end_in(tmp_path / "work")
    assert await waiting == -9
    assert os.getpid() not in criu_process.working_in(tmp_path)
