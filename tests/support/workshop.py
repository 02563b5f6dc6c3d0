"""A worker's means on twins: a runtime, GPUs, a real store and ledger; and jobs run on them."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kybernate.store import CheckpointStore
from node_worker.actors import Means
from node_worker.containerd.port import Container, Packed, Stdio, Task, TaskStatus
from node_worker.executor import Executor, Observer, Outcome, Stop, observe_nothing
from node_worker.gpu.port import GpuState
from node_worker.host import host_facts
from node_worker.jobs import RESTARTED
from node_worker.ledger import Ledger
from node_worker.orders import actor_of
from node_worker.processes import Process
from node_worker.reporter import JobListener
from node_worker.rootfs import writable_layer
from node_worker.settings import WorkerSettings
from node_worker.surroundings import Surroundings
from schemas.messages import Job, JobEvent
from schemas.orders import CheckpointOrder, Order, Target, only_part
from tests.support.acting import Killed
from tests.support.fake_gpu import FakeGpu, facts
from tests.support.fake_runtime import FakeRuntime

NAMESPACE = "default"
SNAPSHOTTER = "overlayfs"
IMAGE = "image-layer"
NODE = "node-1"


def new_id() -> str:
    return str(uuid.uuid4())


def target(container: str = "c1") -> Target:
    return Target(namespace=NAMESPACE, container=container)


class Workshop:
    """Everything lies below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = FakeRuntime(folder / "runtime")
        self.gpu = FakeGpu()
        self.settings = WorkerSettings(node=NODE, state=folder / "state", retire_seconds=0.3)
        self.store = CheckpointStore(self.settings.store)
        self.ledger = Ledger(self.settings.ledger)
        self._keys = itertools.count()
        self.told: list[JobEvent] = []
        """What the jobs have reported of their steps."""

    @property
    def means(self) -> Means:
        return Means(
            settings=self.settings,
            runtime=self.runtime,
            gpu=self.gpu,
            store=self.store,
            ledger=self.ledger,
            host=host_facts(NODE),
            look=look,
        )

    def close(self) -> None:
        self.ledger.close()

    # containers

    async def start(self, id: str = "c1", *, gpu: bool = False) -> int:
        """A container that counts; with `gpu` its process has CUDA."""
        await self._image()
        key = f"{id}-{next(self._keys)}"
        await self.runtime.prepare_snapshot(NAMESPACE, SNAPSHOTTER, key, IMAGE, {})
        spec = {"linux": {"namespaces": [{"type": "network"}], "cgroupsPath": f"/pods/{id}"}}
        await self.runtime.create_container(
            NAMESPACE,
            Container(
                id=id,
                spec=Packed(type_url="spec", value=msgspec.json.encode(spec)),
                image="counter:1",
                labels={"app": id},
                snapshotter=SNAPSHOTTER,
                snapshot_key=key,
            ),
        )
        mounts = await self.runtime.mounts(NAMESPACE, SNAPSHOTTER, key)
        await self.runtime.create_task(NAMESPACE, id, mounts=mounts, stdio=Stdio())
        pid = await self.runtime.start_task(NAMESPACE, id)
        if gpu:
            self.gpu.gpus = (facts(),)
            self.gpu.add(pid)
        return pid

    async def change_root(self, id: str = "c1") -> None:
        """Let the container write into its root filesystem."""
        container = await self.runtime.container(NAMESPACE, id)
        mounts = await self.runtime.mounts(NAMESPACE, SNAPSHOTTER, container.snapshot_key)
        (writable_layer(mounts) / "changed").write_text("by the container")

    async def end(self, id: str = "c1") -> None:
        await self.runtime.kill(NAMESPACE, id, 9)
        await self.runtime.delete_task(NAMESPACE, id)

    async def task(self, id: str = "c1") -> Task | None:
        keys = {container.id for container in await self.runtime.containers(NAMESPACE)}
        try:
            return await self.runtime.task(NAMESPACE, id) if id in keys else None
        except Exception:  # noqa: BLE001 - there is none
            return None

    async def runs(self, id: str = "c1") -> bool:
        """Whether it counts on, with its GPU."""
        task = await self.task(id)
        if task is None or task.status is not TaskStatus.RUNNING:
            return False
        return self.gpu.states.get(task.pid, GpuState.RUNNING) is GpuState.RUNNING

    async def _image(self) -> None:
        if await self.has_snapshot(IMAGE):
            return
        await self.runtime.prepare_snapshot(NAMESPACE, SNAPSHOTTER, "filling", "", {})
        await self.runtime.commit_snapshot(NAMESPACE, SNAPSHOTTER, IMAGE, "filling", {})

    async def has_snapshot(self, key: str) -> bool:
        try:
            await self.runtime.snapshot(NAMESPACE, SNAPSHOTTER, key)
        except Exception:  # noqa: BLE001 - there is none
            return False
        return True

    # jobs

    def job(self, order: Order, *, seconds: float = 60.0) -> Job:
        return Job(
            action=new_id(), attempt=1, node=NODE, order=order, deadline=time.time() + seconds
        )

    async def run(
        self,
        order: Order | Job,
        *,
        observer: Observer = observe_nothing,
        actor: Callable[[Any], Any] = lambda actor: actor,
    ) -> Outcome[Any]:
        """The order's job, from its acceptance to its end."""
        job = order if isinstance(order, Job) else self.job(order)
        self.ledger.accept([(job, "")], time.time())
        return await self._walk(job, observer, actor)

    async def recover(self, job: Job) -> Outcome[Any]:
        """What the next worker process does with a job that it finds."""
        self.ledger.close()
        self.ledger = Ledger(self.settings.ledger)
        self.ledger.turn_back(job.id, RESTARTED)
        return await self._walk(job, observe_nothing, lambda actor: actor)

    async def dies_and_recovers(self, order: Order, observer: Observer) -> Outcome[Any]:
        """The outcome, though the worker dies where the observer raises Killed."""
        job = self.job(order)
        try:
            return await self.run(job, observer=observer)
        except Killed:
            return await self.recover(job)

    async def _walk(self, job: Job, observer: Observer, wrap: Callable[[Any], Any]) -> Outcome[Any]:
        listener = JobListener(job, self.ledger.take_up(job.id), self.told.append)
        actor = wrap(actor_of(self.means, job, listener))
        return await Executor(
            job.id, actor, self.ledger, listener, stop=Stop(), observer=observer, pause=_no_pause
        ).run()

    async def checkpointed(self, id: str = "c1", *, leave_running: bool = False) -> str:
        """The id of a new checkpoint of the container."""
        order = CheckpointOrder(
            parts=only_part(target(id)), checkpoint=new_id(), leave_running=leave_running
        )
        outcome = await self.run(order)
        assert outcome.result is not None, outcome.failure
        return order.checkpoint

    def leftovers(self) -> list[str]:
        """What lies around and should not."""
        work = self.settings.state / "work"
        return [*self.store.leftovers(), *(path.name for path in work.glob("*"))]


async def _no_pause(_: float) -> None:
    await asyncio.sleep(0)


def look(pids: Sequence[int]) -> Surroundings:
    """The twin's processes, numbered from 1 inside their container."""
    processes = tuple(
        Process(pid=pid, inner_pid=number, name="counter", state="S")
        for number, pid in enumerate(pids, 1)
    )
    return Surroundings(processes=processes, free_memory=1 << 40)


class Wrapped:
    """An actor that raises around one of its acts."""

    def __init__(self, actor: Any, act: str, moment: str, error: Exception) -> None:
        self._actor = actor
        self._act, self._moment, self._error = act, moment, error
        self.plan, self.notes = actor.plan, actor.notes
        self.interruptible = actor.interruptible
        self.landed, self.result = actor.landed, actor.result

    async def do(self, step: str, notes: Any) -> Any:
        return await self._around(f"do {step}", self._actor.do(step, notes))

    async def undo(self, step: str, notes: Any) -> None:
        await self._around(f"undo {step}", self._actor.undo(step, notes))

    async def _around(self, act: str, work: Awaitable[Any]) -> Any:
        if act == self._act and self._moment == "before":
            work.close()  # type: ignore[attr-defined]
            raise self._error
        result = await work
        if act == self._act and self._moment == "after":
            raise self._error
        return result
