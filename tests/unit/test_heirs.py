"""New pods are promised checkpoints, over the catalogue that all controllers share."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from controller.catalogue import Catalogue
from controller.engine import Engine
from controller.kube.admission import AdmissionRequest
from controller.kube.client import EVENTS, NODES, PODS, Json, Resource
from controller.kube.heirs import Heirs
from controller.kube.means import Means
from controller.kube.watch import Informer, key_of
from controller.nodes import Nodes
from controller.records import Records
from controller.service import Service
from kybernate.bus.memory import MemoryBroker
from schemas.actions import Action, ActionState
from schemas.checkpoints import Heir
from schemas.kubernetes import (
    ADMISSION_ANNOTATION,
    NODE_UNAVAILABLE_ANNOTATION,
    RESTORE_FROM_ANNOTATION,
)
from schemas.orders import CheckpointOrder, only_part
from tests.support.owned_pods import NAMESPACE, NODE, SET, left, pod_of, running

IMAGE = {NODE_UNAVAILABLE_ANNOTATION: "image"}
READY = {"spec": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}


def identifier(number: int) -> str:
    return f"0b54f2a6-4d2c-4d5e-9f86-{number:012x}"


class Cluster:
    """The API server, as far as it is asked."""

    def __init__(self) -> None:
        self.node: Json | None = READY
        self.pods: dict[str, Json] = {}
        self.events: list[Json] = []

    async def get(self, resource: Resource, _namespace: str, name: str) -> Json | None:
        return self.node if resource == NODES else self.pods.get(name)

    async def listed(self, resource: Resource, **_how: str) -> tuple[list[Json], str]:
        assert resource == PODS
        return list(self.pods.values()), "1"

    async def create(self, resource: Resource, _namespace: str, body: Json) -> Json:
        assert resource == EVENTS
        self.events.append(body)
        return body

    async def watch(self, *_what: Any, **_how: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None

    def add(self, name: str, *, annotations: Any = None, **status: Any) -> Json:
        metadata = {"uid": f"6a1c9ad5-3b57-4f0c-9c65-{len(self.pods):012x}"}
        more = {"namespace": NAMESPACE, "creationTimestamp": "2030-01-01T00:00:00Z"}
        pod = pod_of(SET, name, annotations=annotations or {}, **metadata, **more)
        self.pods[name] = pod | {"status": status}
        return self.pods[name]


class Controller:
    def __init__(self, broker: MemoryBroker, cluster: Any) -> None:
        bus = broker.bus()
        self.cluster = cluster
        self.catalogue, self.records, nodes = Catalogue(bus), Records(bus), Nodes(bus)
        engine = Engine(bus, self.records, self.catalogue)
        means = Means(
            kube=cluster,
            service=Service(engine, self.records, self.catalogue, nodes),
            engine=engine,
            records=self.records,
            catalogue=self.catalogue,
            nodes=nodes,
        )
        self.informer = Informer(cluster, PODS, lambda _pod: None)
        self.heirs = Heirs(means, self.informer)

    async def ask(self, request: str, *, dry_run: bool = False, annotations: Any = None) -> Json:
        """The answer's essence."""
        pod = pod_of(SET, annotations=annotations or {})
        asked = AdmissionRequest(uid=request, namespace=NAMESPACE, object=pod, dry_run=dry_run)
        answer: Json = (await self.heirs.answer(asked))["response"]
        return answer

    async def attend(self, pod: Json) -> None:
        """As when it changed."""
        task = asyncio.create_task(self.informer.run())
        await self.informer.listed.wait()
        task.cancel()
        await asyncio.wait({task})
        await self.heirs.attend(key_of(pod))


@asynccontextmanager
async def controllers(count: int = 1) -> AsyncIterator[tuple[Cluster, Sequence[Controller]]]:
    broker, cluster = MemoryBroker(), Cluster()
    await broker.bus().ensure_topology()
    yield cluster, [Controller(broker, cluster) for _ in range(count)]


@pytest.fixture
async def alone() -> AsyncIterator[Controller]:
    async with controllers() as (_, (one,)):
        yield one


def source(answer: Json) -> str:
    """The checkpoint that a pod is given; empty where it starts or is not made."""
    changes = json.loads(base64.b64decode(answer.get("patch", "W10=")))
    annotations = changes[0]["value"] if changes else {}
    return str(annotations.get(RESTORE_FROM_ANNOTATION, ""))


async def heir_of(controller: Controller, checkpoint: str) -> Heir | None:
    entry = await controller.catalogue.get(checkpoint)
    assert entry
    return entry.heir


@pytest.mark.parametrize("count", [1, 3])
async def test_of_many_at_once_each_is_promised_another(count: int) -> None:
    async with controllers(count) as (_, several):
        made = [identifier(number) for number in range(12)]
        for checkpoint in made:
            await several[0].catalogue.record(left(checkpoint, SET).facts)
        answers = await asyncio.gather(
            *(several[number % count].ask(f"request {number}") for number in range(15))
        )

        assert sorted(filter(None, map(source, answers))) == made
        late = [answer for answer in answers if not source(answer)]
        assert [answer["status"]["code"] for answer in late] == [429] * 3


async def test_a_dry_run_promises_nothing(alone: Controller) -> None:
    await alone.catalogue.record(left(identifier(1), SET).facts)

    assert source(await alone.ask("one", dry_run=True)) == identifier(1)
    assert await heir_of(alone, identifier(1)) is None


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (None, "is gone"),
        (READY | {"spec": {"unschedulable": True}}, "is cordoned"),
        (READY | {"status": {}}, "is not ready"),
    ],
)
async def test_a_pod_that_would_rather_start_than_wait_does(
    alone: Controller, node: Json | None, why: str
) -> None:
    await alone.catalogue.record(left(identifier(1), SET).facts)
    alone.cluster.node = node
    answer = await alone.ask("one", annotations=IMAGE)

    assert source(answer) == ""
    assert why in answer["warnings"][0]
    assert source(await alone.ask("two")) == ""  # nobody wakes up in the past


async def test_an_available_node_is_no_reason_to_start(alone: Controller) -> None:
    await alone.catalogue.record(left(identifier(1), SET).facts)

    assert source(await alone.ask("one", annotations=IMAGE)) == identifier(1)


@pytest.mark.parametrize("gone", [True, False])
async def test_the_successor_of_a_pod_waits_for_its_checkpoint(
    alone: Controller, *, gone: bool
) -> None:
    facts = left(identifier(1), SET).facts
    assert facts.pod
    order = CheckpointOrder(
        parts=only_part(facts.parts[0].target), checkpoint=facts.id, pod=facts.pod
    )
    await alone.records.create(
        Action(
            id=facts.id,
            kind="checkpoint",
            node=NODE,
            order=order,
            state=ActionState.RUNNING,
            created=1.0,
            updated=1.0,
            deadline=2.0,
        )
    )
    if not gone:
        alone.cluster.add(facts.pod.name, **running())["metadata"]["uid"] = facts.pod.uid
    answer = await alone.ask("one")

    assert answer["allowed"] is not gone
    assert source(answer) == ""


async def promised(controller: Controller, **status: Any) -> Json:
    """A pod to which a checkpoint was promised."""
    await controller.catalogue.record(left(identifier(1), SET).facts)
    await controller.ask("one")
    annotations = {RESTORE_FROM_ANNOTATION: identifier(1), ADMISSION_ANNOTATION: "one"}
    pod: Json = controller.cluster.add("counter-x", annotations=annotations, **status)
    return pod


async def test_that_it_runs_is_noted_and_told(alone: Controller) -> None:
    await alone.attend(await promised(alone, **running()))

    heir = await heir_of(alone, identifier(1))
    assert heir
    assert (heir.pod, heir.started) == ("counter-x", True)
    assert [event["reason"] for event in alone.cluster.events] == ["Resumed"]


async def test_that_it_waits_for_its_node_is_told(alone: Controller) -> None:
    words = "0/3 nodes are available: 1 node(s) were unschedulable."
    waits = {"type": "PodScheduled", "status": "False", "message": words}
    await alone.attend(await promised(alone, phase="Pending", conditions=[waits]))

    heir = await heir_of(alone, identifier(1))
    assert heir
    assert (heir.pod, heir.started) == ("counter-x", False)
    (event,) = alone.cluster.events
    assert (event["reason"], event["type"]) == ("WaitsForNode", "Warning")
    assert words in event["message"]
    assert event["involvedObject"]["kind"] == "Pod"


async def test_who_only_names_the_checkpoint_is_no_heir(alone: Controller) -> None:
    pod = await promised(alone, **running())
    pod["metadata"]["annotations"][ADMISSION_ANNOTATION] = "another"
    await alone.attend(pod)

    heir = await heir_of(alone, identifier(1))
    assert heir
    assert not heir.started
    assert alone.cluster.events == []
