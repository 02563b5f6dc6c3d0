"""What a node warns about."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node_worker.gpu.drawbacks import drawbacks
from schemas import reasons
from tests.support import simulated_gpu
from tests.support.gpu_worlds import SimulatedWorld, opened


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedWorld]:
    async with opened(SimulatedWorld, tmp_path) as world:
        yield world


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never")
    return path


async def warned(world: SimulatedWorld, pages: Path, driver: str = "") -> list[str]:
    (pages.parent / "version").write_text(driver)
    return [found.reason for found in await drawbacks(world.gpu, driver=pages.parent, pages=pages)]


async def test_an_ordinary_node_warns_of_nothing(world: SimulatedWorld, pages: Path) -> None:
    assert await warned(world, pages) == []


async def test_a_node_without_gpus_and_driver_warns_of_nothing(
    world: SimulatedWorld, pages: Path
) -> None:
    world.gpus.show(())

    assert await warned(world, pages) == []


async def test_a_driver_whose_gpus_cannot_be_used(world: SimulatedWorld, pages: Path) -> None:
    world.gpus.show(())

    assert await warned(world, pages, "Kernel Module  580.159.04") == [reasons.GPU_UNAVAILABLE]


async def test_gpus_that_cannot_be_checkpointed(world: SimulatedWorld, pages: Path) -> None:
    world.gpus.show([simulated_gpu.gpu(driver="550.10"), simulated_gpu.gpu(1, mig=True)])

    assert reasons.GPU_UNSUPPORTED in await warned(world, pages)
    assert reasons.GPU_DRIVER_TOO_OLD in await warned(world, pages)


async def test_huge_pages_that_cannot_be_set(world: SimulatedWorld, pages: Path) -> None:
    assert await warned(world, pages.with_name("none")) == [reasons.GPU_SLOW]


async def test_huge_pages_that_are_on(world: SimulatedWorld, pages: Path) -> None:
    pages.write_text("[always] madvise never")

    assert await warned(world, pages) == []
