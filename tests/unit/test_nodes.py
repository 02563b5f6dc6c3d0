"""Which node a request is for, and what is refused at once."""

import time

import pytest

from controller.nodes import Nodes, gpu_misfit
from controller.refusals import Refused
from kybernate.bus.memory import MemoryBroker
from kybernate.bus.port import Bus
from schemas import reasons
from schemas.gpus import GpuFacts
from schemas.manifest import CheckpointFacts
from schemas.nodes import SILENT_AFTER_SECONDS
from schemas.orders import Target
from tests.support.checkpoints import parts_of
from tests.support.controllers import tell_inventory
from tests.support.fake_worker import inventory

TARGET = Target(namespace="default", container="counter")
LONG_AGO = time.time() - SILENT_AFTER_SECONDS - 60


def gpu(model: str = "H200", gigabytes: int = 139, *, index: int = 0) -> GpuFacts:
    return GpuFacts(
        index=index, uuid=f"GPU-{index}", model=model, memory_bytes=gigabytes << 30, driver="580"
    )


def facts(*gpus: GpuFacts) -> CheckpointFacts:
    return CheckpointFacts(
        id="c", node="n1", parts=parts_of(TARGET), created=0.0, size=1, gpus=gpus
    )


@pytest.fixture
async def bus() -> Bus:
    bus = MemoryBroker().bus()
    await bus.ensure_topology()
    return bus


@pytest.fixture
def nodes(bus: Bus) -> Nodes:
    return Nodes(bus)


async def refusal(nodes: Nodes, target: Target = TARGET) -> Refused:
    with pytest.raises(Refused) as refused:
        await nodes.holding(target)
    assert refused.value.problem.advice
    return refused.value


async def test_the_node_that_reports_the_container_is_meant(bus: Bus, nodes: Nodes) -> None:
    await tell_inventory(bus, inventory("n1"), inventory("n2", "counter"))
    assert (await nodes.holding(TARGET)).node == "n2"


async def test_a_single_node_is_meant_even_before_it_reports_the_container(
    bus: Bus, nodes: Nodes
) -> None:
    await tell_inventory(bus, inventory("n1"), inventory("gone", at=LONG_AGO))
    assert (await nodes.holding(TARGET)).node == "n1"


async def test_a_silent_node_that_reports_it_alone_is_named(bus: Bus, nodes: Nodes) -> None:
    await tell_inventory(bus, inventory("n1"), inventory("n2", "counter", at=LONG_AGO))
    refused = await refusal(nodes)
    assert refused.reason == reasons.NODE_NOT_READY
    assert "n2" in str(refused)


async def test_several_that_report_it_are_named(bus: Bus, nodes: Nodes) -> None:
    await tell_inventory(bus, inventory("n2", "counter"), inventory("n1", "counter"))
    refused = await refusal(nodes)
    assert refused.reason == reasons.AMBIGUOUS_NODE
    assert "n1, n2" in str(refused)


async def test_a_silent_one_of_several_is_not_meant(bus: Bus, nodes: Nodes) -> None:
    await tell_inventory(bus, inventory("n1", "counter"), inventory("n2", "counter", at=LONG_AGO))
    assert (await nodes.holding(TARGET)).node == "n1"


async def test_a_container_that_nobody_reports_is_unknown(bus: Bus, nodes: Nodes) -> None:
    await tell_inventory(bus, inventory("n1"), inventory("n2"))
    assert (await refusal(nodes)).reason == reasons.UNKNOWN_CONTAINER


async def test_without_any_node_the_advice_is_to_start_a_worker(nodes: Nodes) -> None:
    assert "start a worker" in (await refusal(nodes)).problem.advice


@pytest.mark.parametrize(
    ("at", "ready", "says"),
    [(LONG_AGO, True, "last heard"), (None, False, "is not ready")],
    ids=["silent", "not ready"],  # the same in every process that collects them
)
async def test_a_node_that_takes_no_jobs_is_refused(
    bus: Bus,
    nodes: Nodes,
    at: float | None,
    ready: bool,  # noqa: FBT001
    says: str,
) -> None:
    await tell_inventory(bus, inventory("n1", "counter", at=at, ready=ready))
    refused = await refusal(nodes)
    assert (refused.reason, says in str(refused)) == (reasons.NODE_NOT_READY, True)
    with pytest.raises(Refused, match=says):
        await nodes.taking_jobs("n1")


async def test_nothing_is_refused_on_an_old_read(bus: Bus, nodes: Nodes) -> None:
    await nodes.refresh()
    await tell_inventory(bus, inventory("n1"))
    assert (await nodes.taking_jobs("n1")).node == "n1"


async def test_an_unknown_node_is_refused_with_those_that_are_known(bus: Bus, nodes: Nodes) -> None:
    await tell_inventory(bus, inventory("n1"))
    with pytest.raises(Refused, match="'n2'; known: n1") as refused:
        await nodes.get("n2")
    assert refused.value.reason == reasons.UNKNOWN_NODE


@pytest.mark.parametrize(
    ("needed", "present", "fits"),
    [
        ((), (), True),
        ((gpu(),), (gpu(),), True),
        ((gpu(),), (gpu(), gpu(index=1)), True),
        ((gpu(), gpu(index=1)), (gpu(),), False),
        ((gpu("A100"),), (gpu("H200"),), False),
        ((gpu(gigabytes=80),), (gpu(gigabytes=40),), False),
        ((gpu(),), (), False),
    ],
)
async def test_gpus_fit_by_model_memory_and_number(
    bus: Bus,
    nodes: Nodes,
    needed: tuple[GpuFacts, ...],
    present: tuple[GpuFacts, ...],
    fits: bool,  # noqa: FBT001
) -> None:
    assert (gpu_misfit(needed, present) == "") is fits
    await tell_inventory(bus, inventory("n1", gpus=present))
    if fits:
        assert (await nodes.fitting("n1", facts(*needed))).node == "n1"
        return
    with pytest.raises(Refused) as refused:
        await nodes.fitting("n1", facts(*needed))
    assert refused.value.reason == reasons.GPU_MISFIT
