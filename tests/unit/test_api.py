"""The REST API over the in-memory bus, with a worker that does nothing really."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from openapi_spec_validator import validate

from controller.catalogue import Catalogue
from kybernate import telemetry
from kybernate.bus.memory import MemoryBroker
from kybernate.bus.port import Bus
from kybernate.client import Client, ClientProblem, Unreachable, client
from schemas import reasons
from schemas.actions import ActionState
from schemas.checkpoints import CheckpointState
from schemas.manifest import CheckpointFacts
from schemas.messages import Checkpointed, Deleted, Restored
from schemas.nodes import SILENT_AFTER_SECONDS
from schemas.orders import Place, Target
from schemas.requests import CheckpointRequest, DeleteRequest, Problem, RestoreRequest
from tests.support.checkpoints import parts_of
from tests.support.controllers import controlled, controller, tell_inventory, until
from tests.support.fake_worker import FakeWorker, failure, inventory, working

UNKNOWN = "00000000-0000-0000-0000-000000000000"
ASK = CheckpointRequest(container="counter")


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
async def bus(broker: MemoryBroker) -> Bus:
    bus = broker.bus()
    await bus.ensure_topology()
    await bus.ensure_queue("n1")
    await tell_inventory(bus, inventory("n1", "counter"))
    return bus


@pytest.fixture
async def worker(bus: Bus) -> AsyncIterator[FakeWorker]:
    async with working(FakeWorker(bus, "n1")) as at_work:
        yield at_work


@pytest.fixture
async def asking(bus: Bus) -> AsyncIterator[Client]:
    async with controlled(bus) as one:
        yield one


@pytest.fixture
async def session(bus: Bus) -> AsyncIterator[aiohttp.ClientSession]:
    async with controller(bus) as url, aiohttp.ClientSession(url) as one:
        yield one


@pytest.mark.usefixtures("worker")
async def test_a_checkpoint_goes_round_is_restored_and_deleted(asking: Client) -> None:
    made = await asking.ended((await asking.request(ASK)).id)
    assert made.state is ActionState.COMPLETED
    assert [step.step for step in made.steps] == ["resolve", "dump", "seal"]
    assert isinstance(made.result, Checkpointed)
    checkpoint = made.result.checkpoint.id
    assert checkpoint == made.id
    assert (await asking.checkpoint(checkpoint)).state is CheckpointState.READY

    restored = await asking.request(RestoreRequest(checkpoint=checkpoint, name="again"))
    ended = await asking.ended(restored.id)
    assert isinstance(ended.result, Restored)
    assert ended.result.target.container == "again"

    await asking.ended((await asking.request(DeleteRequest(checkpoint=checkpoint))).id)
    assert (await asking.checkpoint(checkpoint)).state is CheckpointState.DELETED
    with pytest.raises(ClientProblem, match="was deleted") as refused:
        await asking.request(RestoreRequest(checkpoint=checkpoint))
    assert refused.value.reason == reasons.UNKNOWN_CHECKPOINT
    assert [one.kind for one in await asking.actions()] == ["checkpoint", "restore", "delete"]


async def test_a_watch_shows_every_change_at_once_and_ends_with_the_end(
    bus: Bus, asking: Client
) -> None:
    async with working(FakeWorker(bus, "n1", seconds=0.3)):
        action = await asking.request(ASK)
        states = [seen.state async for seen in asking.watch(action.id)]
    assert states[0] in {ActionState.PENDING, ActionState.DISPATCHED, ActionState.RUNNING}
    assert ActionState.RUNNING in states
    assert states[-1] is ActionState.COMPLETED


@pytest.mark.usefixtures("worker")
async def test_the_same_key_again_is_the_same_action(asking: Client, worker: FakeWorker) -> None:
    key = str(uuid.uuid4())
    first, again = await asyncio.gather(*(asking.request(ASK, action=key) for _ in range(2)))
    assert first.id == again.id == key
    await asking.ended(key)
    assert (await asking.request(ASK, action=key)).ended
    assert worker.done == [f"{key}.1"]
    with pytest.raises(ClientProblem, match="asks for something else"):
        await asking.request(CheckpointRequest(container="other", node="n1"), action=key)


async def test_a_failure_that_may_be_cured_is_tried_again(bus: Bus, asking: Client) -> None:
    worker = FakeWorker(
        bus, "n1", fails=lambda job: failure(retriable=True) if job.attempt < 3 else None
    )
    async with working(worker):
        ended = await asking.ended((await asking.request(ASK)).id)
    assert (ended.state, ended.attempt) == (ActionState.COMPLETED, 3)
    assert len(ended.earlier_failures) == 2


async def test_a_failure_that_cannot_be_cured_ends_the_action(bus: Bus, asking: Client) -> None:
    async with working(FakeWorker(bus, "n1", fails=lambda _job: failure(retriable=False))):
        ended = await asking.ended((await asking.request(ASK)).id)
    assert (ended.state, ended.attempt) == (ActionState.FAILED, 1)
    assert ended.failure == failure(retriable=False)


async def test_a_running_action_is_cancelled_by_its_node(bus: Bus, asking: Client) -> None:
    async with working(FakeWorker(bus, "n1", seconds=3)) as worker:
        worker.paused.clear()
        action = await asking.request(ASK)
        assert (await asking.cancel(action.id)).cancel_requested
        worker.paused.set()
        ended = await until(lambda: asking.action(action.id), lambda seen: seen.ended)
    assert ended.state is ActionState.CANCELLED
    with pytest.raises(ClientProblem, match="ended already") as refused:
        await asking.cancel(action.id)
    assert refused.value.reason == reasons.ALREADY_ENDED


async def test_a_checkpoint_in_use_is_not_deleted(bus: Bus, asking: Client) -> None:
    async with working(FakeWorker(bus, "n1")) as worker:
        made = await asking.ended((await asking.request(ASK)).id)
        worker.paused.clear()
        restoring = await asking.request(RestoreRequest(checkpoint=made.id))
        with pytest.raises(ClientProblem, match=f"in use by action {restoring.id}"):
            await asking.request(DeleteRequest(checkpoint=made.id))


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (CheckpointRequest(container="counter", node="nowhere"), reasons.UNKNOWN_NODE),
        (RestoreRequest(checkpoint=UNKNOWN), reasons.UNKNOWN_CHECKPOINT),
        (DeleteRequest(checkpoint=UNKNOWN), reasons.UNKNOWN_CHECKPOINT),
    ],
)
async def test_what_cannot_be_is_refused_at_once(
    asking: Client, ask: CheckpointRequest | RestoreRequest | DeleteRequest, reason: str
) -> None:
    with pytest.raises(ClientProblem) as refused:
        await asking.request(ask)
    assert refused.value.reason == reason
    assert refused.value.advice
    assert await asking.actions() == []


@pytest.mark.usefixtures("worker")
async def test_a_checkpoint_in_memory_stays_where_it_is(asking: Client, bus: Bus) -> None:
    made = await asking.ended(
        (await asking.request(CheckpointRequest(container="counter", place=Place.MEMORY))).id
    )
    assert isinstance(made.result, Checkpointed)
    await tell_inventory(bus, inventory("n2"))
    facts = msgspec.structs.replace(
        made.result.checkpoint, id="00000000-0000-0000-0000-000000000001", place="memory"
    )
    await Catalogue(bus).record(facts)
    for ask in (
        RestoreRequest(checkpoint=facts.id, node="n2"),
        RestoreRequest(checkpoint=facts.id, name="other"),
    ):
        with pytest.raises(ClientProblem, match="can only resume there"):
            await asking.request(ask)
    woken = await asking.ended((await asking.request(RestoreRequest(checkpoint=facts.id))).id)
    assert woken.state is ActionState.COMPLETED
    assert (await asking.checkpoint(facts.id)).state is CheckpointState.DELETED


async def silent(bus: Bus, node: str) -> None:
    await tell_inventory(bus, inventory(node, at=time.time() - SILENT_AFTER_SECONDS - 1))


async def recorded(bus: Bus, node: str) -> str:
    """A checkpoint that lies on that node."""
    target = Target(namespace="default", container="counter")
    facts = CheckpointFacts(
        id=str(uuid.uuid4()), node=node, parts=parts_of(target), created=1.0, size=1
    )
    await Catalogue(bus).record(facts)
    return facts.id


@pytest.mark.usefixtures("worker")
async def test_a_node_that_reports_is_not_deleted(asking: Client, bus: Bus) -> None:
    checkpoint = await recorded(bus, "n1")
    with pytest.raises(ClientProblem, match="n1 is at work") as refused:
        await asking.delete_node("n1")
    assert refused.value.reason == reasons.NODE_IN_USE
    assert (await asking.checkpoint(checkpoint)).state is CheckpointState.READY
    with pytest.raises(ClientProblem, match="there is no node 'n2'"):
        await asking.delete_node("n2")


@pytest.mark.usefixtures("worker")
async def test_the_checkpoints_of_a_deleted_node_stay_as_missing(asking: Client, bus: Bus) -> None:
    await silent(bus, "gone")
    lost, kept = await recorded(bus, "gone"), await recorded(bus, "n1")
    deleted = await asking.delete_node("gone")
    assert (deleted.node, deleted.missing) == ("gone", (lost,))
    assert [node.node for node in await asking.nodes()] == ["n1"]
    states = {entry.facts.id: entry.state for entry in await asking.checkpoints()}
    assert states == {lost: CheckpointState.MISSING, kept: CheckpointState.READY}

    with pytest.raises(ClientProblem, match="is missing: its node gone was deleted") as refused:
        await asking.request(RestoreRequest(checkpoint=lost))
    assert refused.value.reason == reasons.CHECKPOINT_MISSING
    copied = await asking.ended(
        (await asking.request(RestoreRequest(checkpoint=lost, node="n1"))).id
    )
    assert copied.state is ActionState.COMPLETED


async def test_a_checkpoint_whose_node_is_deleted_is_deleted_without_it(
    asking: Client, bus: Bus
) -> None:
    await silent(bus, "gone")
    lost = await recorded(bus, "gone")
    with pytest.raises(ClientProblem, match="gone takes no jobs") as refused:
        await asking.request(DeleteRequest(checkpoint=lost))
    assert "`kybernate delete node gone`" in refused.value.advice
    await asking.delete_node("gone")
    ended = await asking.request(DeleteRequest(checkpoint=lost))
    assert (ended.state, ended.result) == (ActionState.COMPLETED, Deleted(checkpoint=lost))
    assert (await asking.checkpoint(lost)).state is CheckpointState.DELETED
    assert [one.id for one in await asking.actions()] == [ended.id]


async def test_a_node_that_comes_back_is_back(asking: Client, bus: Bus) -> None:
    await silent(bus, "gone")
    await asking.delete_node("gone")
    await tell_inventory(bus, inventory("gone"))
    assert (await asking.node("gone")).ready


@pytest.mark.usefixtures("worker")
async def test_where_there_was_no_gpu_none_can_be_chosen(asking: Client) -> None:
    made = await asking.ended((await asking.request(ASK)).id)
    with pytest.raises(ClientProblem, match="holds no GPU memory") as refused:
        await asking.request(RestoreRequest(checkpoint=made.id, gpu_map={"GPU-a": "GPU-b"}))
    assert refused.value.reason == reasons.INVALID_REQUEST
    assert [one.kind for one in await asking.actions()] == ["checkpoint"]


@pytest.mark.usefixtures("worker")
async def test_what_is_frozen_in_memory_cannot_be_left_running(asking: Client) -> None:
    ask = CheckpointRequest(container="counter", place=Place.MEMORY, leave_running=True)
    with pytest.raises(ClientProblem, match="cannot be left running") as refused:
        await asking.request(ask)
    assert refused.value.reason == reasons.INVALID_REQUEST
    assert await asking.actions() == []


@pytest.mark.parametrize("path", ["actions", "checkpoints", "nodes", "actions/{}/watch"])
@pytest.mark.parametrize("name", [UNKNOWN, "no such", "a.b", "..", "%2e%2e%2f", "ü"])
async def test_unknown_things_are_not_found(
    session: aiohttp.ClientSession, path: str, name: str
) -> None:
    where = path.format(name) if "{}" in path else f"{path}/{name}"
    async with session.get(f"/api/v1/{where}") as answer:
        assert answer.status == 404
        assert msgspec.json.decode(await answer.read(), type=Problem).message


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "Input data was truncated"),
        (b"\xff", 400, "does not fit"),
        (b'{"kind": "destroy"}', 400, "destroy"),
        (b'{"kind": "checkpoint"}', 400, "container"),
        (b'{"kind": "checkpoint", "container": "../etc"}', 400, "a name of letters"),
        (b'{"kind": "checkpoint", "container": "a", "timeout": -1}', 400, "timeout"),
        (b'{"kind": "restore", "checkpoint": "x"}', 400, "an id as `kybernate get checkpoints`"),
        (b'{"kind": "checkpoint", "container": "a", "leaveRunning": true}', 400, "leaveRunning"),
        (b" " * 70_000, 413, "larger than"),
    ],
)
async def test_a_wrong_body_is_explained(
    session: aiohttp.ClientSession, body: bytes, status: int, says: str
) -> None:
    async with session.post("/api/v1/actions", data=body) as answer:
        assert answer.status == status
        assert says in msgspec.json.decode(await answer.read(), type=Problem).message


async def test_a_body_that_is_encoded_otherwise_than_it_says_is_explained(
    session: aiohttp.ClientSession,
) -> None:
    headers = {"Content-Encoding": "gzip"}
    body = b'{"kind": "checkpoint", "container": "a"}'
    async with session.post("/api/v1/actions", data=body, headers=headers) as answer:
        assert answer.status == 400
        assert "cannot be read" in msgspec.json.decode(await answer.read(), type=Problem).message


async def test_a_body_that_does_not_come_is_not_waited_for(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.http.BODY_SECONDS", 0.2)
    async with controller(bus) as url:
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /api/v1/actions HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
        async with asyncio.timeout(30):
            status = await reader.readline()
        writer.close()
    assert b" 400 " in status


async def test_a_key_that_is_no_id_and_a_query_that_does_not_fit_are_explained(
    session: aiohttp.ClientSession,
) -> None:
    headers = {"Idempotency-Key": "mine"}
    body = msgspec.json.encode(ASK)
    async with session.post("/api/v1/actions", data=body, headers=headers) as answer:
        assert answer.status == 400
        assert "no UUID" in await answer.text()
    async with session.get("/api/v1/actions?state=lost") as answer:
        assert answer.status == 400
    async with session.get("/api/v1/actions?stat=failed") as answer:
        assert answer.status == 400
    async with session.get("/api/v1/actions?state=failed&kind=restore") as answer:
        assert await answer.json() == []
    async with session.delete("/api/v1/actions") as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET,POST"


async def test_a_web_page_gets_nothing_done_without_a_token(
    session: aiohttp.ClientSession,
) -> None:
    body = msgspec.json.encode(ASK)
    headers = {"Origin": "https://elsewhere.example", "Content-Type": "text/plain"}
    async with session.post("/api/v1/actions", data=body, headers=headers) as answer:
        assert answer.status == 401
    async with session.get("/api/v1/actions", headers=headers) as answer:
        assert await answer.json() == []


async def test_only_who_shows_a_token_is_let_in(bus: Bus) -> None:
    async with controller(bus, tokens=("one", "two")) as url:
        for token in (None, "three", "on", ""):
            async with client([url], token=token) as stranger:
                with pytest.raises(ClientProblem) as refused:
                    await stranger.nodes()
                assert refused.value.reason == reasons.UNAUTHORIZED
        for token in ("one", "two"):
            async with client([url], token=token) as friend:
                assert [node.node for node in await friend.nodes()] == ["n1"]
        async with aiohttp.ClientSession() as session:
            for path in ("healthz", "readyz", "openapi.json"):
                async with session.get(f"{url}/{path}") as answer:
                    assert answer.status == 200
            wrong = {"Authorization": "Basic one"}
            async with session.get(f"{url}/api/v1/nodes", headers=wrong) as answer:
                assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_without_a_bus_the_answer_is_to_come_again(
    broker: MemoryBroker, bus: Bus, asking: Client
) -> None:
    broker.disconnect()
    with pytest.raises(Unreachable, match="disconnected"):
        await asking.request(ASK)
    broker.reconnect()
    assert (await asking.request(ASK)).state is ActionState.PENDING
    assert bus.connected


async def test_a_controller_that_is_not_connected_is_not_ready(
    broker: MemoryBroker, session: aiohttp.ClientSession
) -> None:
    broker.disconnect()
    async with session.get("/readyz") as answer:
        assert answer.status == 503
    async with session.get("/healthz") as answer:
        assert answer.status == 200


async def test_a_watch_lives_through_an_outage(
    broker: MemoryBroker, bus: Bus, asking: Client
) -> None:
    async with working(FakeWorker(bus, "n1")) as worker:
        worker.paused.clear()
        action = await asking.request(ASK)
        ended = asyncio.create_task(asking.ended(action.id))
        await asyncio.sleep(0.1)
        broker.disconnect()
        await asyncio.sleep(1.5)
        broker.reconnect()
        worker.paused.set()
        assert (await ended).state is ActionState.COMPLETED


async def test_the_description_is_valid_and_names_every_route(
    session: aiohttp.ClientSession,
) -> None:
    async with session.get("/openapi.json") as answer:
        description = await answer.json()
    validate(description)
    paths = description["paths"]
    assert set(paths["/api/v1/actions"]) == {"get", "post"}
    assert "/api/v1/actions/{id}/watch" in paths
    assert "/v1/checkpoint/status/{action_id}" in paths
    assert "/v2/checkpoints/deprecate/{checkpoint_id}" in paths
    status = paths["/v2/checkpoint/status/{action_id}"]["get"]["responses"]
    assert status["404"]["content"] == status["200"]["content"]
    ids = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.usefixtures("worker")
async def test_it_is_one_trace_from_the_client_to_the_node(asking: Client) -> None:
    collector = telemetry.SpanCollector()
    with telemetry.tracing("test", collector=collector):
        with telemetry.span(telemetry.SPAN_COMMAND):
            trace_id = telemetry.trace_id()
            action = await asking.request(ASK)
            ended = await asking.ended(action.id)
        assert ended.traceparent.split("-")[1] == trace_id
        wanted = {"command", "request", "dispatch", "job", "event"}

        async def names() -> set[str]:
            return {span.name for span in collector.spans(trace_id)}

        await until(names, lambda found: wanted <= found)
    depths = {span.name: depth for depth, span in collector.timeline(trace_id)}
    assert depths["command"] < depths["request"] < depths["dispatch"] < depths["job"]
    assert depths["event"] == depths["dispatch"]
