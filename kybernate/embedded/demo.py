"""The whole way round, shown: a container counts, is checkpointed, killed, and counts on.

Everything is real and in a folder of its own that goes with the demo: NATS, controller, worker,
containerd. The counter holds a random token in its memory alone; that the token is the same
afterwards, and that no number is left out or said twice, shows that the same process goes on.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from kybernate import telemetry
from kybernate.cli import progress, text
from kybernate.client import Client, client
from kybernate.embedded.counting import Counted, Counter, counted, problem_with
from kybernate.embedded.host import Host, HostSettings, all_in_one
from kybernate.embedded.timeline import timeline
from kybernate.embedded.workload import NAMESPACE, Running, Workloads
from node_worker.containerd.client import connect
from schemas.actions import Action
from schemas.messages import Checkpointed, Restored
from schemas.requests import CheckpointRequest, Request, RestoreRequest

NODE = "demo"
CONTAINER = "counter"
COUNTS = 5
COUNT_TIMEOUT = 300.0
"""Loading PyTorch and filling a GPU takes its time."""
SPAN_DEMO = "demo"

Say = Callable[[str], None]
R = TypeVar("R", Checkpointed, Restored)


class DemoFailed(Exception):
    """A step of the demo did not do what it has to do."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo has shown; `--output json` prints it."""

    ok: bool
    problem: str
    counter_before: int
    counter_after: int
    token_before: str
    token_after: str
    checkpoint: str
    checkpoint_bytes: int
    checkpoint_ms: float
    restore_ms: float
    steps: dict[str, dict[str, float]]
    """Milliseconds of each step, by action."""
    trace: str = ""
    timeline: list[str] = []

    @property
    def summary(self) -> str:
        end = "OK" if self.ok else f"FAILED: {self.problem}"
        return (
            f"demo: counter {self.counter_before} -> {self.counter_after}, "
            f"checkpoint {self.checkpoint_ms:.0f} ms, restore {self.restore_ms:.0f} ms, {end}"
        )


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """An action that is done, and how long its client waited for it."""

    action: Action
    milliseconds: float

    @property
    def steps(self) -> dict[str, float]:
        return {
            step.step: round(step.seconds * 1000, 2)
            for step in self.action.steps
            if step.seconds is not None
        }


async def run(say: Say, counter: Counter) -> Report:
    """Go the whole way; whatever happens, nothing is left running, mounted or on the disk."""
    collector = telemetry.SpanCollector()
    with _folder() as folder, telemetry.tracing("kybernate", collector=collector):
        say(f"everything of this demo is in {folder}")
        settings = HostSettings(folder=folder, node=NODE, listen="127.0.0.1:0")
        async with all_in_one(settings) as host, _stage(host) as stage:
            say(f"NATS with JetStream is at {host.nats}")
            say(f"containerd {stage.version} is at {host.containerd}")
            say(f"the controller's REST API is at {host.url}")
            running = await stage.start(say, counter)
            with telemetry.span(SPAN_DEMO):
                trace = telemetry.trace_id()
                shown = await stage.round(say, running)
    say("everything is removed again")
    lines = timeline(collector.timeline(trace))
    return msgspec.structs.replace(shown, trace=trace, timeline=lines)


class _Stage:
    """What the demo plays with."""

    def __init__(self, workloads: Workloads, version: str, client: Client) -> None:
        self._workloads = workloads
        self.version = version
        self._client = client

    async def start(self, say: Say, counter: Counter) -> Running:
        running = await self._workloads.start_container(
            CONTAINER, counter.workload, python=counter.python
        )
        await running.wait_for(
            lambda lines: len(counted(lines).tokens) >= COUNTS, timeout=COUNT_TIMEOUT
        )
        say(f"container {CONTAINER} runs as pid {running.pid}: {counted(running.lines()).last}")
        return running

    async def round(self, say: Say, running: Running) -> Report:
        """Checkpoint it, kill it, resume it."""
        request = CheckpointRequest(container=CONTAINER, namespace=NAMESPACE)
        checkpointed = await self._told(say, request)
        facts = _result(checkpointed.action, Checkpointed).checkpoint
        told = running.lines()
        before = counted(told)
        say(f"checkpoint {facts.id} is durable, {text.size(facts.size)}: {before.last}")

        await running.remove()
        if Path(f"/proc/{running.pid}").exists():
            raise DemoFailed(f"process {running.pid} outlived its container")
        say(f"killed: neither process {running.pid} nor the container's record and files are left")

        restored = await self._told(say, RestoreRequest(checkpoint=facts.id))
        again = self._workloads.running(CONTAINER, _result(restored.action, Restored).pid)
        goal = len(before.tokens) + COUNTS
        lines = await again.wait_for(lambda lines: len(counted(lines).tokens) >= goal)
        after = counted(lines[len(told) :])
        say(f"container {CONTAINER} runs on as pid {again.pid}: {after.last}")
        return _report(checkpointed, restored, before, after)

    async def _told(self, say: Say, request: Request) -> Told:
        """Post the request and tell its steps until it is done."""
        began = time.monotonic()
        with telemetry.span(telemetry.SPAN_COMMAND):
            action = await self._followed(say, request)
        if action.failure:
            raise DemoFailed(f"{action.kind} failed: {action.failure.message}")
        return Told(action=action, milliseconds=(time.monotonic() - began) * 1000)

    async def _followed(self, say: Say, request: Request) -> Action:
        action = await self._client.request(request)
        say(f"asked for a {action.kind}: action {action.id}")
        told: set[str] = set()
        async for seen in self._client.watch(action.id):
            action = seen
            for step in seen.steps:
                if step.seconds is not None and step.step not in told:
                    told.add(step.step)
                    say(progress.line(step))
        return action


def _report(checkpointed: Told, restored: Told, before: Counted, after: Counted) -> Report:
    facts = _result(checkpointed.action, Checkpointed).checkpoint
    problem = problem_with(before, after)
    return Report(
        ok=not problem,
        problem=problem,
        counter_before=before.numbers[-1],
        counter_after=after.numbers[-1],
        token_before=before.tokens[-1],
        token_after=after.tokens[-1],
        checkpoint=facts.id,
        checkpoint_bytes=facts.size,
        checkpoint_ms=round(checkpointed.milliseconds, 1),
        restore_ms=round(restored.milliseconds, 1),
        steps={told.action.kind: told.steps for told in (checkpointed, restored)},
    )


def _result(action: Action, of: type[R]) -> R:
    if not isinstance(action.result, of):
        raise DemoFailed(f"{action.kind} ended as {action.state} without a result")
    return action.result


@contextlib.asynccontextmanager
async def _stage(host: Host) -> AsyncIterator[_Stage]:
    if host.daemon is None:
        raise DemoFailed("the demo needs a containerd of its own")
    async with (
        connect(host.containerd) as runtime,
        client((host.url,)) as rest,
    ):
        yield _Stage(Workloads(host.daemon, runtime), await runtime.version(), rest)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Its path is short, for there are Unix sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="kybernate-demo-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)
