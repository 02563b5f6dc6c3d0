"""A house with GPUs, simulated ones and, where there are any, real ones."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from node_worker.gpu import host
from tests.support.gpu_house import GpuHouse, gpu_house
from tests.support.gpu_kinds import RealKind, SimulatedKind

NO_GPU = "NO GPU HERE: what becomes of its containers is shown on simulated ones"
REAL = pytest.param(
    RealKind,
    marks=[pytest.mark.gpu, pytest.mark.skipif(not host.driver_version(), reason=NO_GPU)],
    id="real",
)
KINDS = [pytest.param(SimulatedKind, id="simulated"), REAL]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[GpuHouse]:
    folder = tmp_path_factory.mktemp("gpus")
    async with gpu_house(request.param(folder), folder) as house:
        yield house
