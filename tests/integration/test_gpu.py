"""The whole way with a simulated GPU in a real container: NATS, containerd, runc and CRIU are real,
and so is the process, which works only while the simulated driver lets it.
"""

import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from controller import app as controller_app
from controller.settings import ControllerSettings
from kybernate.bus import BusSettings
from kybernate.bus.nats import connect
from kybernate.client import ClientProblem, client
from kybernate.embedded.containerd import PrivateContainerd
from kybernate.embedded.counting import counted, problem_with
from kybernate.embedded.nats_server import NatsServer
from kybernate.embedded.oci import Workload
from kybernate.embedded.workload import NAMESPACE, Running
from node_worker import app as worker_app
from node_worker.containerd.client import Containerd
from node_worker.containerd.port import NotFound
from node_worker.settings import WorkerSettings
from schemas import reasons
from schemas.actions import ActionState
from schemas.failures import Failure
from schemas.gpus import GpuFacts
from schemas.manifest import CheckpointFacts
from schemas.messages import Checkpointed, Job, Restored
from schemas.names import job_subject
from schemas.orders import CheckpointOrder, Part, Place, Target, verb
from schemas.requests import CheckpointRequest, RestoreRequest
from tests.support import simulated_gpu
from tests.support.controllers import until
from tests.support.node import NODE, Node
from tests.support.simulated_container import HOME, digests, simulated_counter
from tests.support.simulated_gpu import Fault, SimulatedGpus, gpu

COUNTER = simulated_counter({gpu().uuid: 1_000_000})


class GpuNode:
    """A node with simulated GPUs, and its one container."""

    def __init__(self, node: Node, gpus: SimulatedGpus) -> None:
        self.node = node
        self.gpus = gpus

    async def counter(self, workload: Workload = COUNTER) -> Running:
        running = await self.node.workloads.start_container("counter", workload)
        await running.wait_for_more(3)
        return running

    async def failure(self, request: CheckpointRequest | RestoreRequest) -> Failure:
        action = await self.node.ended(request)
        assert action.state is ActionState.FAILED
        assert action.failure
        return action.failure


class Site:
    """Where nodes come and go over the same containerd and the same folders."""

    def __init__(
        self, folder: Path, nats: NatsServer, daemon: PrivateContainerd, runtime: Containerd
    ) -> None:
        self._folder = folder
        self._daemon = daemon
        self._runtime = runtime
        self._bus = BusSettings(servers=(nats.url,))
        self.gpus = SimulatedGpus(folder / "gpus")

    async def checkpoint_as_one(self, *names: str) -> str:
        """The containers' checkpoint, asked of the worker itself; they have ended with it."""
        parts = tuple(
            Part(name=name, target=Target(namespace=NAMESPACE, container=name)) for name in names
        )
        order = CheckpointOrder(
            parts=parts, checkpoint=str(uuid.uuid4()), independent_gpu_processes=True
        )
        job = Job(
            action=order.checkpoint, attempt=1, node=NODE, order=order, deadline=time.time() + 60
        )
        async with connect(self._bus, name="test") as bus:
            await bus.publish(job_subject(NODE, verb(order)), job, dedupe=job.id)
            await until(lambda: self._have_ended(names), bool)
        return order.checkpoint

    async def _have_ended(self, names: tuple[str, ...]) -> bool:
        for name in names:
            with contextlib.suppress(NotFound):
                await self._runtime.task(NAMESPACE, name)
                return False
        return True

    @contextlib.asynccontextmanager
    async def node(self, *gpus: GpuFacts) -> AsyncIterator[GpuNode]:
        self.gpus.show(gpus)
        worker = WorkerSettings(
            node=NODE,
            state=self._folder / "worker",
            containerd=self._daemon.socket,
            bus=self._bus,
            gpu_driver=simulated_gpu.__name__,
            gpu_argument=str(self.gpus.folder),
        )
        controller = ControllerSettings(listen="127.0.0.1:0", bus=self._bus)
        async with (
            connect(self._bus, name="controller") as first,
            connect(self._bus, name="worker") as second,
            controller_app.serving(controller, first) as url,
            worker_app.serving(worker, second),
            client((url,)) as rest,
        ):
            node = Node(url, self._folder / "worker", self._daemon, self._runtime, rest)
            yield GpuNode(node, self.gpus)


@pytest.fixture
def site(
    folder: Path,
    nats: NatsServer,
    daemon: PrivateContainerd,
    runtime: Containerd,
) -> Site:
    return Site(folder, nats, daemon, runtime)


def order(**changes: object) -> CheckpointRequest:
    request = CheckpointRequest(container="counter", namespace=NAMESPACE)
    return msgspec.structs.replace(request, **changes)


def memory_of(running: Running) -> set[str]:
    """The names of its memory blocks, with where they are."""
    home = Path(f"/proc/{running.pid}/root{HOME}")
    return {path.name for path in home.glob("1/*-GPU-*")}


async def counts_on(before: Running, after: Running) -> None:
    """The lines go on where they stood, with the same GPU memory behind them."""
    stood = counted(before.lines())
    lines = await after.wait_for_more(5)
    assert not problem_with(stood, counted(lines[len(stood.numbers) :]))


async def restored(here: GpuNode, checkpoint: CheckpointFacts) -> Running:
    result = await here.node.restore(checkpoint.id)
    return here.node.workloads.running("counter", result.pid)


async def test_gpu_memory_goes_the_whole_way_round(site: Site) -> None:
    async with site.node(gpu(0)) as here:
        before = await here.counter()
        checkpoint = await here.node.checkpoint("counter")
        await before.kill()

        after = await restored(here, checkpoint)

        await counts_on(before, after)
        assert checkpoint.gpus == (gpu(0),)
        assert memory_of(after) == {f"vram-{gpu(0).uuid}"}


async def test_two_containers_are_taken_off_the_gpu_as_one_and_come_back_one_by_one(
    site: Site,
) -> None:
    names = ("one", "two")
    async with site.node(gpu(0)) as here:
        before = [await here.node.workloads.start_container(name, COUNTER) for name in names]
        for running in before:
            await running.wait_for_more(3)
        checkpoint = await site.checkpoint_as_one(*names)
        calls = [call.split()[0] for call in here.gpus.calls()]
        assert calls == ["lock", "lock", "checkpoint", "checkpoint"]

    async with site.node(gpu(0)) as here:
        await until(here.node.client.checkpoints, bool)  # the worker tells of it when it starts
        with pytest.raises(ClientProblem, match="one, two"):
            await here.node.ended(RestoreRequest(checkpoint=checkpoint))
        for stopped in before:
            request = RestoreRequest(checkpoint=checkpoint, container=stopped.id)
            result = (await here.node.completed(request)).result
            assert isinstance(result, Restored)
            await counts_on(stopped, here.node.workloads.running(stopped.id, result.pid))


async def test_a_workload_that_is_left_running_notices_nothing(site: Site) -> None:
    async with site.node(gpu(0)) as here:
        before = await here.counter()

        await here.node.checkpoint("counter", leave_running=True)

        await before.wait_for_more(3)
        assert not problem_with(counted(before.lines()[:3]), counted(before.lines()[3:]))


async def test_another_gpu_of_the_model_takes_over(site: Site) -> None:
    async with site.node(gpu(0)) as here:
        before = await here.counter()
        checkpoint = await here.node.checkpoint("counter")
        await before.kill()

    async with site.node(gpu(1)) as here:
        after = await restored(here, checkpoint)

        await counts_on(before, after)
        assert memory_of(after) == {f"vram-{gpu(1).uuid}"}


async def test_resumes_with_its_gpus_swapped(site: Site) -> None:
    a, b = gpu(0).uuid, gpu(1).uuid
    async with site.node(gpu(0), gpu(1)) as here:
        before = await here.counter(simulated_counter({a: 1000, b: 2000}))
        data = digests(before.pid)
        checkpoint = await here.node.checkpoint("counter")

        request = RestoreRequest(checkpoint=checkpoint.id, gpu_map={a: b, b: a})
        result = (await here.node.completed(request)).result

        assert isinstance(result, Restored)
        await counts_on(before, here.node.workloads.running("counter", result.pid))
        assert digests(result.pid) == {a: data[b], b: data[a]}


async def test_a_node_whose_gpus_do_not_fit_is_refused_early(site: Site) -> None:
    async with site.node(gpu(0)) as here:
        before = await here.counter()
        checkpoint = await here.node.checkpoint("counter")
        await before.kill()

    async with site.node(gpu(0, model="Simulated 50")) as here:
        ask = here.node.client.nodes
        await until(ask, lambda nodes: {gpu.model for gpu in nodes[0].gpus} == {"Simulated 50"})
        with pytest.raises(ClientProblem) as refused:
            await here.node.client.request(RestoreRequest(checkpoint=checkpoint.id))

        assert refused.value.reason == reasons.GPU_MISFIT
        assert "it needs 1 × Simulated 100" in refused.value.message


async def test_suspended_in_memory_the_gpu_is_free_and_comes_back(site: Site) -> None:
    async with site.node(gpu(0)) as here:
        before = await here.counter()
        await here.node.completed(order(place=Place.MEMORY))
        assert memory_of(before) == {f"saved-{gpu(0).uuid}"}
        (waiting,) = await here.node.client.checkpoints()

        await here.node.restore(waiting.facts.id)

        await counts_on(before, before)
        assert memory_of(before) == {f"vram-{gpu(0).uuid}"}


async def test_a_kernel_that_runs_too_long_is_left_alone(site: Site) -> None:
    async with site.node(gpu(0)) as here:
        before = await here.counter()
        busy = Path(f"/proc/{before.pid}/root{HOME}/1/busy")
        busy.write_text(str(time.time() + 600))

        failure = await here.failure(order(timeout=8.0))

        assert failure.reason == reasons.GPU_BUSY
        await counts_on(before, before)


@pytest.mark.parametrize("call", ["lock", "checkpoint", "checkpoint-after"])
async def test_a_driver_that_hangs_costs_the_checkpoint_and_nothing_else(
    site: Site, call: str
) -> None:
    async with site.node(gpu(0)) as here:
        before = await here.counter()
        here.gpus.fault(call, None, Fault(kind="hang"))

        failure = await here.failure(order(timeout=3.0))

        assert failure.reason in {reasons.GPU_HUNG, reasons.DEADLINE_EXCEEDED}
        await counts_on(before, before)
        assert memory_of(before) == {f"vram-{gpu(0).uuid}"}


async def test_a_driver_that_fails_costs_the_checkpoint_and_nothing_else(site: Site) -> None:
    async with site.node(gpu(0)) as here:
        before = await here.counter()
        here.gpus.fault("checkpoint", None, Fault(kind="error"))

        failure = await here.failure(order())

        assert failure.reason == reasons.GPU_FAILED
        await counts_on(before, before)


async def test_a_helper_that_dies_in_a_call_costs_nothing(site: Site) -> None:
    async with site.node(gpu(0)) as here:
        before = await here.counter()
        here.gpus.fault("checkpoint-after", None, Fault(kind="die"))

        checkpoint = await here.node.checkpoint("counter")
        await before.kill()

        await counts_on(before, await restored(here, checkpoint))


async def test_a_worker_that_stops_in_between_lets_go_of_the_gpu_and_tries_again(
    site: Site,
) -> None:
    async with site.node(gpu(0)) as here:
        before = await here.counter()
        here.gpus.fault("checkpoint", None, Fault(kind="slow", seconds=2.0))
        action = await here.node.client.request(order())
        await before.wait_for(lambda _: "checkpoint" in " ".join(here.gpus.calls()))

    await before.wait_for_more(3)
    assert memory_of(before) == {f"vram-{gpu(0).uuid}"}

    async with site.node(gpu(0)) as here:
        ended = await here.node.client.ended(action.id)
        assert isinstance(ended.result, Checkpointed)

        await counts_on(before, await restored(here, ended.result.checkpoint))
