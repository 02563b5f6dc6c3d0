"""What several plans do with a container's task.

A plan touches only the task that it has found or made, which it knows by the pid: while a worker
was down, somebody may have ended it and started another one under the same name.
"""

import asyncio
import signal
from typing import Final

from kybernate.tasks import backoff
from node_worker import freezer
from node_worker.containerd.port import (
    Container,
    NotFound,
    Runtime,
    RuntimeFailed,
    Task,
    TaskStatus,
)
from node_worker.faults import Refused
from node_worker.threads import in_thread
from schemas import reasons
from schemas.orders import Target

END_SECONDS: Final = 30.0
PAUSE_TRIES: Final = 8
UNFROZEN: Final = "unable to freeze"
"""runc's words; it has thawed by then what was frozen already."""
ALIVE: Final = frozenset({TaskStatus.RUNNING, TaskStatus.PAUSED, TaskStatus.CREATED})


class Tasks:
    """The task of one container."""

    def __init__(self, runtime: Runtime, target: Target) -> None:
        self._runtime = runtime
        self._namespace = target.namespace
        self._id = target.container

    async def found(self) -> Task | None:
        try:
            return await self._runtime.task(self._namespace, self._id)
        except NotFound:
            return None

    async def container(self) -> Container | None:
        try:
            return await self._runtime.container(self._namespace, self._id)
        except NotFound:
            return None

    async def pids(self) -> tuple[int, ...]:
        return await self._runtime.pids(self._namespace, self._id)

    async def running(self) -> tuple[Container, Task, tuple[int, ...]]:
        """The container with its running task and that task's processes, or why there is none."""
        container, task = await asyncio.gather(self.container(), self.found())
        if container is None:
            raise Refused(
                reasons.UNKNOWN_CONTAINER,
                f"there is no container {self._id} in containerd's namespace {self._namespace}",
                advice="See that --namespace is right; `kybernate describe node NAME` lists the "
                "containers of a node with theirs.",
            )
        status = task.status if task else "without a task"
        if task is None or task.status is not TaskStatus.RUNNING:
            raise Refused(
                reasons.NOT_RUNNING,
                f"container {self._id} is {status}, only a running one can be checkpointed",
                advice="Resume it first: `kybernate restore`, if a checkpoint in memory holds it."
                if status == TaskStatus.PAUSED
                else "Start or resume the container first.",
            )
        return container, task, await self.pids()

    async def pause(self) -> None:
        """Again where runc lets go, which it does soon when processes come faster than they freeze:
        a shell that calls a program in a loop, on a busy machine. The next try catches them.
        """
        for failures in range(1, PAUSE_TRIES + 1):
            try:
                await self._runtime.pause(self._namespace, self._id)
            except RuntimeFailed as error:
                if UNFROZEN not in str(error) or failures == PAUSE_TRIES:
                    raise
                await asyncio.sleep(backoff(failures, first=0.05, longest=0.5))
            else:
                return

    async def resume(self, pid: int) -> None:
        """Let it run on, if it is still the task of that pid."""
        task = await self.found()
        if task is None or task.pid != pid or task.status is TaskStatus.STOPPED:
            return
        try:
            await self._runtime.resume(self._namespace, self._id)
        except RuntimeFailed:
            if not await in_thread(freezer.freeze_if_thawed, pid):
                raise
            await self._runtime.resume(self._namespace, self._id)

    async def has_ended(self, pid: int) -> bool:
        """The task of that pid, by whomever."""
        task = await self.found()
        return task is None or task.pid != pid or task.status is TaskStatus.STOPPED

    async def kill(self, pid: int) -> None:
        """End it, if it is still there; whoever made it deletes it."""
        if not await self.has_ended(pid):
            await self._runtime.kill(self._namespace, self._id, signal.SIGKILL, all=True)
            await self._exited()

    async def end(self, pid: int | None = None) -> None:
        """Kill it and delete it, if it is still there (and of that pid)."""
        task = await self.found()
        if task is None or (pid is not None and task.pid != pid):
            return
        if task.status is TaskStatus.CREATED and await self._deleted_unstarted():
            return
        if task.status is not TaskStatus.STOPPED:
            await self._runtime.kill(self._namespace, self._id, signal.SIGKILL, all=True)
            await self._exited()
        await self._runtime.delete_task(self._namespace, self._id)

    async def _deleted_unstarted(self) -> bool:
        """A task that is to be restored has no process before its start: nothing to kill."""
        try:
            await self._runtime.delete_task(self._namespace, self._id)
        except RuntimeFailed:  # it has begun to start, or was made without a checkpoint
            return False
        return True

    async def _exited(self) -> None:
        try:
            await self._runtime.wait_exit(self._namespace, self._id, timeout=END_SECONDS)
        except NotFound:
            return
