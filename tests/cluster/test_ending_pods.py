"""A pod that is not left running is deleted when its checkpoint is durable, before its containers
end: against a real API server, with a worker that holds the moment in between.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.kube.client import CHECKPOINTS, PODS
from kybernate.embedded.kubernetes.cluster import Cluster
from tests.support.controllers import until
from tests.support.kube_owners import Owners, asked, source_of
from tests.support.kube_world import World, settle, world

HELD = ["test.kybernate.io/hold"]


@pytest.fixture
async def place(cluster: Cluster, kubeconfig: Path) -> AsyncIterator[World]:
    async with world(cluster, kubeconfig) as here:
        here.worker.may_end.clear()
        yield here


async def ask(place: World, **spec: Any) -> Any:
    """The pod, of which a checkpoint is being made."""
    pod = await place.pod("counter")
    await place.checkpoint("first", podName="counter", **spec)
    return pod


async def is_durable(place: World) -> None:
    states = await until(place.catalogue, bool, every=0.1)
    assert list(states.values()) == ["ready"]


async def assert_completed(place: World) -> None:
    """Once its containers end."""
    assert not place.worker.done
    place.worker.may_end.set()
    await place.in_phase(CHECKPOINTS, "first", "Completed")
    assert len(place.worker.done) == 1


async def test_the_pod_goes_while_its_containers_stand(place: World) -> None:
    async with place.controllers(2):
        await ask(place)
        await place.once(PODS, "counter", lambda pod: pod is None)

        assert (await place.in_phase(CHECKPOINTS, "first", "InProgress"))["action"]
        await is_durable(place)
        await assert_completed(place)


async def test_a_pod_that_is_left_running_stays(place: World) -> None:
    async with place.controllers():
        await ask(place, leaveRunning=True)
        await place.in_phase(CHECKPOINTS, "first", "Completed")
        await settle()

        assert await place.kube.get(PODS, place.namespace, "counter")


async def test_whoever_comes_after_a_controller_that_died_deletes_the_pod(place: World) -> None:
    place.worker.may_seal.clear()
    async with place.controllers():
        await ask(place)
        await place.in_phase(CHECKPOINTS, "first", "InProgress")
    place.worker.may_seal.set()
    await settle()
    assert await place.kube.get(PODS, place.namespace, "counter")
    async with place.controllers():
        await place.once(PODS, "counter", lambda pod: pod is None)
        await is_durable(place)
        await assert_completed(place)


async def test_a_pod_that_took_its_name_meanwhile_stays(place: World) -> None:
    place.worker.may_seal.clear()
    async with place.controllers():
        old = await ask(place)
        await place.in_phase(CHECKPOINTS, "first", "InProgress")
        await place.kube.delete(PODS, place.namespace, "counter", uid=old["metadata"]["uid"])
        await place.once(PODS, "counter", lambda pod: pod is None)
        new = await place.pod("counter")
        place.worker.may_seal.set()
        await is_durable(place)
        await settle()
        await assert_completed(place)

        there = await place.kube.get(PODS, place.namespace, "counter")
        assert there
        assert there["metadata"]["uid"] == new["metadata"]["uid"]
        assert "deletionTimestamp" not in there["metadata"]


async def test_a_pod_that_a_finalizer_holds_is_terminating(place: World) -> None:
    async with place.controllers():
        await place.pod("counter")
        await _hold(place, HELD)
        await place.checkpoint("first", podName="counter")
        await place.once(PODS, "counter", lambda pod: "deletionTimestamp" in pod["metadata"])
        await assert_completed(place)

        await _hold(place, [])
        await place.once(PODS, "counter", lambda pod: pod is None)


async def test_the_pod_goes_though_its_resource_is_deleted_meanwhile(place: World) -> None:
    async with place.controllers():
        await ask(place, deletionPolicy="Keep")
        await is_durable(place)
        found = await place.kube.get(CHECKPOINTS, place.namespace, "first")
        assert found
        uid = found["metadata"]["uid"]
        await place.kube.delete(CHECKPOINTS, place.namespace, "first", uid=uid)
        await place.once(PODS, "counter", lambda pod: pod is None)
        place.worker.may_end.set()

        await place.once(CHECKPOINTS, "first", lambda one: one is None)
        assert list((await place.catalogue()).values()) == ["ready"]


async def test_the_successor_inherits_though_the_old_containers_still_stand(
    own_cluster: Cluster, kubeconfig: Path
) -> None:
    async with world(own_cluster, kubeconfig) as place, asked(place, 2):
        place.worker.may_end.clear()
        owners = Owners(place)
        (pod,) = await owners.make("Deployment")
        evicting = asyncio.create_task(owners.evict(pod))
        (heir,) = await owners.pods(1, besides=[pod])
        assert not place.worker.done
        place.worker.may_end.set()

        assert [source_of(heir)] == await evicting
        await owners.scale("Deployment", 2)
        (other,) = await owners.pods(1, besides=[pod, heir])
        assert source_of(other) == ""


async def _hold(place: World, finalizers: list[str]) -> None:
    body = {"metadata": {"finalizers": finalizers}}
    await place.kube.patch(PODS, place.namespace, "counter", body)
