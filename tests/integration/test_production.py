"""Kybernate as it runs in production: processes of their own, spoken to by the command line."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest

from kybernate.client import Client, client
from kybernate.embedded.containerd import PrivateContainerd
from kybernate.embedded.counting import counted, problem_with, shell_counter
from kybernate.embedded.nats_server import NatsServer
from kybernate.embedded.stack import find_stack
from kybernate.embedded.workload import NAMESPACE, Running, Workloads
from node_worker.containerd.client import connect
from schemas import reasons
from schemas.actions import Action
from schemas.checkpoints import CatalogueEntry
from schemas.messages import Checkpointed
from tests.support.otlp import Collector, Received, otlp_collector
from tests.support.processes import Output, Service, kybernate, service, url_of

NODE = "node 1.of/test"
"""A name that no subject could hold as it is."""
COUNTS = 3


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Two controllers and a worker, and what a user's shell has set."""

    controllers: tuple[Service, Service]
    worker: Service
    worker_arguments: tuple[str, ...]
    collector: Collector
    env: dict[str, str]

    async def call(self, *arguments: str) -> Output:
        return await kybernate(*arguments, env=self.env)


@pytest.fixture
async def setup(folder: Path, nats: NatsServer, daemon: PrivateContainerd) -> AsyncIterator[Setup]:
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(otlp_collector())
        common = {
            "KYBERNATE_NATS": nats.url,
            "KYBERNATE_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",  # milliseconds between two exports
        }

        async def start(name: str, *arguments: str) -> Service:
            log = folder / f"{name}.log"
            return await stack.enter_async_context(service(log, *arguments, env=common))

        listen = ("--listen", "127.0.0.1:0", "--token", "secret")
        first = await start("first", "controller", *listen)
        second = await start("second", "controller", *listen)
        place = ("--containerd", str(daemon.socket), "--state", str(folder / "state"))
        worker_arguments = ("worker", "--node", NODE, *place)
        worker = await start("worker", *worker_arguments)
        urls = f"{await url_of(first)} {await url_of(second)}"
        env = {**common, "KYBERNATE_SERVER": urls, "KYBERNATE_TOKEN": "secret"}
        made = Setup(
            controllers=(first, second),
            worker=worker,
            worker_arguments=worker_arguments,
            collector=collector,
            env=env,
        )
        await ready(made.env, NODE)
        yield made


@asynccontextmanager
async def rest_of(env: dict[str, str]) -> AsyncIterator[Client]:
    servers, token = env["KYBERNATE_SERVER"].split(), env.get("KYBERNATE_TOKEN")
    async with client(servers, token=token) as rest:
        yield rest


async def until(wanted: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await wanted():  # noqa: ASYNC110 - other processes set no events
            await asyncio.sleep(0.05)


async def ready(env: dict[str, str], node: str) -> None:
    async with rest_of(env) as rest:

        async def reported() -> bool:
            return any(seen.node == node and seen.ready for seen in await rest.nodes())

        await until(reported)


async def dumping(env: dict[str, str]) -> bool:
    async with rest_of(env) as rest:
        return any(step.step == "dump" for action in await rest.actions() for step in action.steps)


async def started(workloads: Workloads, name: str) -> Running:
    running = await workloads.start_container(name, shell_counter().workload)
    await running.wait_for(lambda lines: len(lines) >= COUNTS)
    return running


@asynccontextmanager
async def workloads_in(state: Path) -> AsyncIterator[Workloads]:
    """The private containerd that `up` keeps in its state folder."""
    daemon = PrivateContainerd(find_stack(), state / "containerd")
    async with connect(daemon.socket) as runtime:
        yield Workloads(daemon, runtime)


async def counted_on(workloads: Workloads, name: str, before: list[str]) -> str:
    """Why it has not counted on from there; empty when it has."""
    again = workloads.running(name, 0)
    lines = await again.wait_for(lambda lines: len(lines) >= len(before) + COUNTS)
    return problem_with(counted(before), counted(lines[len(before) :]))


async def checkpointed(setup: Setup, container: str) -> tuple[Action, str]:
    output = await setup.call("checkpoint", container, "-n", NAMESPACE, "--output", "json")
    assert output.code == 0, output.stderr
    action = msgspec.json.decode(output.stdout, type=Action)
    assert isinstance(action.result, Checkpointed)
    return action, action.result.checkpoint.id


async def test_the_whole_way_round_over_processes(setup: Setup, workloads: Workloads) -> None:
    running = await started(workloads, "counter")
    action, checkpoint = await checkpointed(setup, "counter")
    before = running.lines()
    await running.remove()
    await one_trace(setup.collector, action)

    await setup.controllers[0].end(signal.SIGKILL)
    restored = await setup.call("restore", checkpoint)
    assert restored.code == 0, restored.stderr
    assert restored.stdout.startswith(f"{NAMESPACE}/counter  runs again, pid ")
    assert await counted_on(workloads, "counter", before) == ""

    deleted = await setup.call("delete", "checkpoint", checkpoint)
    assert deleted.code == 0, deleted.stderr
    shown = await setup.call("describe", "checkpoint", checkpoint, "--output", "json")
    assert msgspec.json.decode(shown.stdout, type=CatalogueEntry).state == "deleted"
    assert (await setup.call("restore", checkpoint)).code == 4


async def one_trace(collector: Collector, action: Action) -> None:
    """The checkpoint's spans hang together, from the command to the last step on the node."""
    trace = action.traceparent.split("-")[1]
    wanted = {
        ("kybernate-cli", "command"),
        ("kybernate-controller", "dispatch"),
        ("kybernate-controller", "request"),
        ("kybernate-worker", "job"),
        ("kybernate-worker", "step dump"),
        ("kybernate-worker", "step release"),
    }

    def of_the_trace() -> list[Received]:
        return [span for span in collector.spans if span.trace == trace]

    async def complete() -> bool:
        return wanted <= {(span.service, span.name) for span in of_the_trace()}

    await until(complete)
    spans = of_the_trace()
    known = {span.id for span in spans}
    assert [span.name for span in spans if span.parent not in known] == ["command"]


async def test_a_worker_killed_in_the_middle_is_started_again(
    setup: Setup, workloads: Workloads, folder: Path
) -> None:
    running = await started(workloads, "counter")
    ordering = asyncio.create_task(checkpointed(setup, "counter"))
    await until(partial(dumping, setup.env))
    await setup.worker.end(signal.SIGKILL)

    async with service(folder / "again.log", *setup.worker_arguments, env=setup.env) as again:
        action, checkpoint = await ordering
        before = running.lines()
        await running.remove()
        restored = await setup.call("restore", checkpoint)
        assert restored.code == 0, restored.stderr
        assert await counted_on(workloads, "counter", before) == ""
        assert [failure.reason for failure in action.earlier_failures] in (
            [reasons.WORKER_RESTARTED],
            [],  # the kill came when the checkpoint was durable already
        )
        assert await again.end() == 0


async def test_a_second_worker_of_the_same_name_is_refused(setup: Setup, folder: Path) -> None:
    arguments = (*setup.worker_arguments, "--state", str(folder / "another"))
    second = await kybernate(*arguments, env=setup.env)
    assert second.code == 4
    assert f"serves node {NODE} already" in second.stderr
    assert setup.worker.process.returncode is None


async def test_what_is_wrong_is_told_with_the_fitting_code(setup: Setup) -> None:
    unknown = await setup.call("checkpoint", "nobody", "-n", NAMESPACE)
    assert unknown.code in {1, 4}
    assert "nobody" in unknown.stderr
    stranger = await kybernate("get", "nodes", env=setup.env | {"KYBERNATE_TOKEN": "wrong"})
    assert stranger.code == 4
    assert "KYBERNATE_TOKEN" in stranger.stderr
    nobody = await kybernate("get", "nodes", "--server", "http://127.0.0.1:1")
    assert nobody.code == 3


async def test_services_end_in_order_when_they_are_told(setup: Setup) -> None:
    assert await setup.worker.end() == 0
    assert await setup.controllers[0].end(signal.SIGINT) == 0


async def test_up_keeps_its_state_over_a_restart(folder: Path) -> None:
    state = folder / "up"
    arguments = ("up", "--state", str(state), "--node", "here", "--listen", "127.0.0.1:0")

    async def env_of(host: Service) -> dict[str, str]:
        env = {"KYBERNATE_SERVER": await url_of(host)}
        await ready(env, "here")
        return env

    async with service(folder / "first.log", *arguments) as host:
        env = await env_of(host)
        async with workloads_in(state) as workloads:
            running = await started(workloads, "counter")
            output = await kybernate("checkpoint", "counter", "-n", NAMESPACE, env=env)
            assert output.code == 0, output.stderr
            before = running.lines()
        second = await kybernate(*arguments)
        assert second.code == 4
        assert "choose another folder with --state" in second.stderr
        assert await host.end() == 0

    async with service(folder / "second.log", *arguments) as host:
        env = await env_of(host)
        listed = await kybernate("get", "actions", env=env)
        assert "completed" in listed.stdout
        restored = await kybernate("restore", output.stdout.split()[0], env=env)
        assert restored.code == 0, restored.stderr
        async with workloads_in(state) as workloads:
            assert await counted_on(workloads, "counter", before) == ""
        assert await host.end() == 0


async def test_up_on_a_containerd_of_the_hosts_leaves_its_containers_running(
    folder: Path, daemon: PrivateContainerd, workloads: Workloads
) -> None:
    running = await started(workloads, "counter")
    place = ("--state", str(folder / "up"), "--containerd", str(daemon.socket))
    arguments = ("up", *place, "--node", "here", "--listen", "127.0.0.1:0")
    async with service(folder / "up.log", *arguments) as host:
        env = {"KYBERNATE_SERVER": await url_of(host)}
        await ready(env, "here")
        output = await kybernate("checkpoint", "counter", "-n", NAMESPACE, env=env)
        assert output.code == 0, output.stderr
        before = running.lines()
        restored = await kybernate("restore", output.stdout.split()[0], env=env)
        assert restored.code == 0, restored.stderr
        assert await host.end() == 0
    assert await counted_on(workloads, "counter", before) == ""


async def test_up_killed_in_the_middle_takes_up_everything_again(folder: Path) -> None:
    state = folder / "up"
    arguments = ("up", "--state", str(state), "--node", "here", "--listen", "127.0.0.1:0")
    async with service(folder / "first.log", *arguments) as host:
        env = {"KYBERNATE_SERVER": await url_of(host)}
        await ready(env, "here")
        async with workloads_in(state) as workloads:
            bystander = await started(workloads, "bystander")
            running = await started(workloads, "counter")
        accepted = await kybernate("checkpoint", "counter", "-n", NAMESPACE, "--no-wait", env=env)
        await until(partial(dumping, env))
        await host.end(signal.SIGKILL)
    await bystander.wait_for_more(COUNTS)

    async with service(folder / "second.log", *arguments) as host:
        env = {"KYBERNATE_SERVER": await url_of(host)}
        await ready(env, "here")
        async with rest_of(env) as rest:
            action = await rest.ended(accepted.stdout.strip())
        assert isinstance(action.result, Checkpointed), action.failure
        before = running.lines()
        async with workloads_in(state) as workloads:
            restored = await kybernate("restore", action.result.checkpoint.id, env=env)
            assert restored.code == 0, restored.stderr
            assert await counted_on(workloads, "counter", before) == ""
            told = bystander.lines()
            assert await counted_on(workloads, "bystander", told) == ""
        assert await host.end() == 0
