"""The propagator's routes, as clients in the field speak to them."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from controller.records import Records
from kybernate.bus.memory import MemoryBroker
from kybernate.bus.port import Bus
from tests.support.controllers import controller, tell_inventory, until
from tests.support.fake_worker import FakeWorker, failure, inventory, working

UNKNOWN = "00000000-0000-0000-0000-000000000000"
pytestmark = pytest.mark.parametrize("version", ["/v1", "/v2"])


@pytest.fixture
async def bus() -> Bus:
    bus = MemoryBroker().bus()
    await bus.ensure_topology()
    await bus.ensure_queue("n1")
    await tell_inventory(bus, inventory("n1", "counter"))
    return bus


@pytest.fixture
async def worker(bus: Bus) -> AsyncIterator[FakeWorker]:
    async with working(FakeWorker(bus, "n1")) as at_work:
        yield at_work


class Field:
    """A client that knows nothing but the propagator's routes."""

    def __init__(self, session: aiohttp.ClientSession, version: str) -> None:
        self._session = session
        self._version = version

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        async with self._session.request(method, self._version + path, json=body) as answer:
            if answer.content_type == "text/plain":
                return answer.status, await answer.text()
            return answer.status, await answer.json()

    async def checkpoint(self, **body: object) -> str:
        status, action = await self.call("POST", "/checkpoint/pod", {"pod_id": "counter", **body})
        assert status == 200, action
        assert str(uuid.UUID(action)) == action
        return str(action)

    async def ends(self, action: str) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            _, body = await self.call("GET", f"/checkpoint/status/{action}")
            return dict(body)

        return await until(ask, lambda body: body["status"] in {"ready", "error"})


@pytest.fixture
async def field(bus: Bus, version: str) -> AsyncIterator[Field]:
    async with (
        controller(bus, tokens=("secret",)) as url,
        aiohttp.ClientSession(url, headers={"Authorization": "Bearer secret"}) as session,
    ):
        yield Field(session, version)


@pytest.mark.usefixtures("worker")
async def test_what_clients_in_the_field_do(field: Field) -> None:
    made = await field.checkpoint(runc_root="/run/containerd/runc/k8s.io")
    assert (await field.ends(made))["pod_id"] == "counter"

    status, restored = await field.call("POST", "/restore/pod", {"action_id": made})
    assert status == 200
    name = (await field.ends(restored))["pod_id"]
    assert "counter" in name
    assert "restored" in name

    again = await field.checkpoint(pod_id=name)
    assert (await field.ends(again))["status"] == "ready"
    status, twice = await field.call("POST", "/restore/pod", {"action_id": again})
    other = (await field.ends(twice))["pod_id"]
    assert other != name
    assert other.count("restored") == 1


@pytest.mark.usefixtures("worker")
async def test_actions_are_listed_by_type_and_cluster(field: Field) -> None:
    manual = await field.checkpoint(cluster_id="c1")
    beat = await field.checkpoint(cluster_id="c2", reason="heartbeat")
    for action in (manual, beat):
        await field.ends(action)
    _, every = await field.call("GET", "/actions")
    assert [one["action_id"] for one in every] == [manual, beat]
    first = every[0]
    assert (first["status"], first["type"], first["checkpoint_id"]) == (
        "ready",
        "checkpoint_pod",
        manual,
    )
    assert (first["gpu"], first["platform"], first["node_name"]) == (False, "x86_64", "n1")
    assert first["checkpoint_status"] == "ready"
    _, beats = await field.call("GET", "/actions?type=heartbeat")
    assert [one["action_id"] for one in beats] == [beat]
    _, in_cluster = await field.call("GET", "/actions?cluster_id=c1")
    assert [one["action_id"] for one in in_cluster] == [manual]
    assert await field.call("GET", "/actions/from_pod/counter") == (200, beat)
    status, problem = await field.call("GET", "/actions/from_pod/nobody")
    assert (status, problem["message"]) == (404, "there is no action of pod 'nobody'")


@pytest.mark.usefixtures("worker")
async def test_a_checkpoint_is_deprecated(field: Field) -> None:
    made = await field.checkpoint()
    await field.ends(made)
    path = f"/checkpoints/deprecate/{made}"
    for _ in range(2):
        status, answer = await field.call("PATCH", path)
        assert (status, answer) == (200, {"checkpoint_id": made, "status": "deprecated"})
    _, listed = await field.call("GET", "/checkpoints")
    assert [(one["id"], one["status"]) for one in listed] == [(made, "deprecated")]
    assert (await field.call("PATCH", f"/checkpoints/deprecate/{UNKNOWN}"))[0] == 404
    assert (await field.call("POST", "/restore/pod", {"action_id": made}))[0] == 404


async def test_a_checkpoint_in_use_is_not_deprecated(field: Field, worker: FakeWorker) -> None:
    made = await field.checkpoint()
    await field.ends(made)
    worker.paused.clear()
    await field.call("POST", "/restore/pod", {"action_id": made})
    status, problem = await field.call("PATCH", f"/checkpoints/deprecate/{made}")
    assert (status, problem["reason"]) == (409, "CheckpointInUse")


async def test_a_failure_is_an_error_with_details(bus: Bus, field: Field) -> None:
    async with working(FakeWorker(bus, "n1", fails=lambda _job: failure(retriable=False))):
        ended = await field.ends(await field.checkpoint())
    assert (ended["status"], ended["details"]) == ("error", "DumpFailed: as told; none")


async def test_an_unknown_action_is_not_found(field: Field) -> None:
    status, body = await field.call("GET", f"/checkpoint/status/{UNKNOWN}")
    assert (status, body["status"], body["action_id"]) == (404, "not_found", UNKNOWN)


@pytest.mark.usefixtures("worker")
async def test_clients_say_whether_the_pod_runs_on(bus: Bus, field: Field) -> None:
    async def leaves_running(**body: object) -> bool:
        action = await field.checkpoint(**body)
        row = await Records(bus).read(action)
        return bool(row and getattr(row.value.order, "leave_running", False))

    assert not await leaves_running()
    assert await leaves_running(reason="heartbeat")
    assert await leaves_running(overrides={"criu_opts": {"leave_running": True}})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"pod_id": "../etc"},
        {"pod_id": "counter", "kind": "rootfsonly"},
        {"pod_id": "counter", "kind": "else"},
        {"pod_id": 7},
        [],
    ],
)
async def test_what_does_not_fit_is_refused_with_a_message(field: Field, body: object) -> None:
    status, problem = await field.call("POST", "/checkpoint/pod", body)
    assert status == 400
    assert problem["message"]


async def test_clusters_and_the_user_answer_as_clients_expect(field: Field) -> None:
    status, cluster = await field.call("POST", "/cluster", {"cluster_name": "here"})
    assert status == 200
    assert (await field.call("POST", "/cluster", {"cluster_name": "here"}))[1] == cluster
    assert (await field.call("DELETE", f"/cluster/{cluster}")) == (200, cluster)
    assert (await field.call("GET", "/user"))[0] == 200


async def test_without_a_token_there_is_a_message(bus: Bus, version: str) -> None:
    async with (
        controller(bus, tokens=("secret",)) as url,
        aiohttp.ClientSession(url) as session,
        session.get(f"{version}/actions") as answer,
    ):
        assert answer.status == 401
        assert (await answer.json())["message"]
