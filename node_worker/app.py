"""The worker process: wiring, start and graceful stop.

Order of a start: alone on the state folder; everything that an earlier process left is undone or
finished (which needs no bus); alone with the node's name; then jobs are taken. A stop takes no
more jobs, calls off what is not committed, waits until it is undone, and tells how it ended.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any, Final

from kybernate import tasks
from kybernate.bus import Bus, BusProblem, BusUnavailable
from kybernate.bus.nats import connect
from kybernate.store import CheckpointStore
from node_worker.actors import Means
from node_worker.alone import NodeClaim, alone_in
from node_worker.containerd import client as containerd
from node_worker.containerd.port import Runtime, RuntimeProblem
from node_worker.executor import Observer, observe_nothing
from node_worker.gpu import hugepages
from node_worker.gpu.client import open_gpu
from node_worker.gpu.helper import HelperSettings
from node_worker.gpu.port import Gpu
from node_worker.holdings import Holdings
from node_worker.host import host_facts
from node_worker.intake import Intake
from node_worker.jobs import Jobs
from node_worker.ledger import Ledger
from node_worker.orders import actor_of
from node_worker.pods.doorway import doorway
from node_worker.pods.restores import Restores
from node_worker.registration import Registration, instance_name
from node_worker.reporter import Reporter
from node_worker.settings import WorkerSettings
from schemas import reasons

log = logging.getLogger(__name__)

OPEN_SECONDS: Final = 30.0
"""How often what stayed open is taken up again."""
PRUNE_SECONDS: Final = 3600.0
CLEAR_SECONDS: Final = 300.0
KEPT_SECONDS: Final = 7 * 24 * 3600.0
LAST_WORDS_SECONDS: Final = 5.0


async def run(settings: WorkerSettings, *, serving_now: Callable[[], None] | None = None) -> None:
    """Serve the node until cancelled. `serving_now` is called once jobs are taken."""
    async with (
        connect(settings.bus, name=f"kybernate-worker-{settings.node}") as bus,
        serving(settings, bus),
    ):
        if serving_now is not None:
            serving_now()
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def serving(
    settings: WorkerSettings, bus: Bus, *, observer: Observer = observe_nothing
) -> AsyncIterator[None]:
    """A whole worker on a bus; the block is entered when it takes jobs."""
    with alone_in(settings.lock):
        helper = HelperSettings(
            state=settings.state, driver=settings.gpu_driver, argument=settings.gpu_argument
        )
        async with (
            containerd.connect(settings.containerd) as runtime,
            open_gpu(helper) as gpu,
            working(settings, bus, runtime, gpu, observer=observer),
        ):
            yield


@contextlib.asynccontextmanager
async def working(
    settings: WorkerSettings,
    bus: Bus,
    runtime: Runtime,
    gpu: Gpu,
    *,
    observer: Observer = observe_nothing,
) -> AsyncIterator[Jobs]:
    """The worker over a runtime and GPUs of the caller's."""
    async with contextlib.AsyncExitStack() as stack:
        ledger = stack.enter_context(contextlib.closing(Ledger(settings.ledger)))
        means = Means(
            settings=settings,
            runtime=runtime,
            gpu=gpu,
            store=CheckpointStore(settings.store),
            ledger=ledger,
            host=host_facts(settings.node, containerd=await _version(runtime)),
        )
        reporter = Reporter(bus, settings.node, ledger)
        jobs = Jobs(partial(actor_of, means), ledger, reporter, observer=observer)
        _background(stack, reporter.run(), "reporter")
        stack.push_async_callback(_stop, jobs, reporter)
        await _serve(stack, bus, means, jobs)
        yield jobs


async def _serve(stack: contextlib.AsyncExitStack, bus: Bus, means: Means, jobs: Jobs) -> None:
    instance = instance_name()
    registration = Registration(bus, means, jobs, instance)
    claim = NodeClaim(bus, means.settings.node, instance)
    recovering = asyncio.create_task(_recover(means, jobs))
    try:
        await claim.take()
        _background(stack, claim.run_answering(), "claim")
        _background(stack, registration.run_heartbeat(), "heartbeat")
        await recovering
    finally:
        await tasks.end(recovering)
    registration.recovered = True
    with contextlib.suppress(BusUnavailable):  # the next heartbeat tells it
        await registration.beat()
    if means.settings.pods:
        restores = Restores(means)
        await stack.enter_async_context(doorway(means.settings.runtime_state, restores))
        _background(stack, _clearing_up(restores), "clearing up after pods")
    _background(stack, Holdings(bus, means).run(), "announcing")
    _background(stack, _settling(jobs), "settling")
    _background(stack, _pruning(means.ledger), "pruning")
    _background(stack, Intake(bus, means.settings, jobs).run(), "intake")


async def _recover(means: Means, jobs: Jobs) -> None:
    await asyncio.to_thread(hugepages.put_back)
    await jobs.take_up_open()
    await asyncio.to_thread(_discard_leftovers, means.store)


def _discard_leftovers(store: CheckpointStore) -> None:
    """What lies aside when no job is at work is nobody's."""
    for name in store.leftovers():
        store.discard(name)


async def _settling(jobs: Jobs) -> None:
    await asyncio.sleep(OPEN_SECONDS)
    await tasks.for_ever(jobs.take_up_open, name="taking up open jobs", pause=OPEN_SECONDS)


async def _pruning(ledger: Ledger) -> None:
    async def prune() -> None:
        ledger.prune(time.time() - KEPT_SECONDS)

    await tasks.for_ever(prune, name="pruning the ledger", pause=PRUNE_SECONDS)


async def _clearing_up(restores: Restores) -> None:
    await tasks.for_ever(restores.clear_up, name="clearing up after pods", pause=CLEAR_SECONDS)


async def _stop(jobs: Jobs, reporter: Reporter) -> None:
    """Undo what is not committed, and say so if the bus is there to hear it."""
    await tasks.finish(jobs.close())
    with contextlib.suppress(TimeoutError, BusProblem):  # the ledger has it, the next one tells
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            await reporter.publish()


def _background(
    stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None], name: str
) -> None:
    """Run it until the stack is left; the first to be started is the last to be ended."""
    stack.push_async_callback(tasks.end, asyncio.create_task(work, name=name))


async def _version(runtime: Runtime) -> str:
    """Containerd's version; empty while it is away, for it may come back."""
    try:
        return await runtime.version()
    except RuntimeProblem as error:
        log.warning("%s: %s", reasons.RUNTIME_UNAVAILABLE, error)
        return ""
