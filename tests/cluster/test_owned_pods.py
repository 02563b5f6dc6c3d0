"""Pods of Deployments, StatefulSets and Jobs: an evicted one's checkpoint goes to its successor,
and to nobody else. Decisions against a real API server and its controllers, without containers.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from operator import ne
from pathlib import Path
from typing import Any

import pytest

from controller.kube.client import NODES, PODS, SECRETS, Resource
from kybernate.embedded.kubernetes.cluster import Cluster
from schemas.checkpoints import Heir
from schemas.kubernetes import ADMISSION_ANNOTATION, NODE_UNAVAILABLE_ANNOTATION
from tests.support.controllers import until
from tests.support.kube_owners import Owners, asked, is_asked, name_of, source_of
from tests.support.kube_world import World, settle, world

QUOTAS = Resource(api="/api/v1", plural="resourcequotas")


@pytest.fixture
async def owners(own_cluster: Cluster, account: Path) -> AsyncIterator[Owners]:
    async with world(own_cluster, account) as place:
        yield Owners(place)


@pytest.fixture
def place(owners: Owners) -> World:
    return owners.place


async def test_one_new_pod_inherits_and_the_others_start(owners: Owners, place: World) -> None:
    async with asked(place):
        first, second = await owners.make("Deployment", replicas=2)
        (checkpoint,) = await owners.evict(first)
        (heir,) = await owners.running(1, besides=[first, second])

        assert source_of(heir) == checkpoint
        assert heir["spec"]["runtimeClassName"] == "kybernate"
        said = await until(lambda: place.events(name_of(heir)), bool, every=0.2)
        assert said.keys() == {"Resumed"}
        assert name_of(first) in said["Resumed"]
        await owners.scale("Deployment", 3)
        (third,) = await owners.pods(1, besides=[first, second, heir])
        assert source_of(third) == ""
        assert third["metadata"]["annotations"].keys() == {ADMISSION_ANNOTATION}
        assert "runtimeClassName" not in third["spec"]
        there = await place.kube.get(PODS, place.namespace, name_of(second))
        assert there
        assert there["metadata"]["uid"] == second["metadata"]["uid"]


async def test_an_heir_that_is_evicted_again_leaves_what_it_has_become(
    owners: Owners, place: World
) -> None:
    async with asked(place):
        (pod,) = await owners.make("StatefulSet")
        name = name_of(pod)
        for _ in range(2):
            (checkpoint,) = await owners.evict(pod)
            (heir,) = await owners.running(1, besides=[pod])
            assert (name_of(heir), source_of(heir)) == (name, checkpoint)
            await until(lambda: place.events(name), lambda told: "Resumed" in told)
            pod = heir
        await place.kube.delete(PODS, place.namespace, name_of(pod), uid=pod["metadata"]["uid"])
        (last,) = await owners.pods(1, besides=[pod])
        assert source_of(last) == ""


async def test_a_jobs_pod_goes_on(owners: Owners, place: World) -> None:
    async with asked(place):
        (pod,) = await owners.make("Job")
        (checkpoint,) = await owners.evict(pod)
        (heir,) = await owners.pods(1, besides=[pod])

        assert source_of(heir) == checkpoint


async def test_two_controllers_give_each_checkpoint_to_one_pod(
    owners: Owners, place: World
) -> None:
    count = 6
    async with asked(place, 2):
        old = await owners.make("Deployment", replicas=count)
        left = await owners.evict(*old)
        heirs = await owners.pods(count, besides=old)

        assert sorted(map(source_of, heirs)) == sorted(left)


async def test_pods_start_while_nobody_can_be_asked_and_nobody_inherits_later(
    owners: Owners, place: World
) -> None:
    async with place.controllers():
        (pod,) = await owners.make("Deployment")
        (checkpoint,) = await owners.evict(pod)
        (late,) = await owners.running(1, besides=[pod])
        assert source_of(late) == ""
    async with asked(place):
        said = await until(lambda: place.events(name_of(late)), bool, every=0.2)
        assert said.keys() == {"StartedFromImage"}
        assert checkpoint in said["StartedFromImage"]
        await owners.scale("Deployment", 2)
        (other,) = await owners.pods(1, besides=[pod, late])
        assert source_of(other) == ""
    await owners.scale("Deployment", 3)
    await owners.pods(3)


async def test_a_pod_that_was_never_made_leaves_its_promise(owners: Owners, place: World) -> None:
    async with asked(place):
        (pod,) = await owners.make("StatefulSet")
        quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
        await place.kube.create(QUOTAS, place.namespace, quota)
        (checkpoint,) = await owners.evict(pod)
        await until(place.heirs, bool, every=0.1)
        made = await place.kube.get(QUOTAS, place.namespace, "none")
        assert made
        await place.kube.delete(QUOTAS, place.namespace, "none", uid=made["metadata"]["uid"])
        (heir,) = await owners.pods(1, besides=[pod])
        assert source_of(heir) == checkpoint


async def test_a_second_pod_waits_until_it_is_known_who_inherits(
    owners: Owners, place: World
) -> None:
    async with asked(place):
        (pod,) = await owners.make("Deployment")
        (checkpoint,) = await owners.evict(pod)
        (heir,) = await owners.running(1, besides=[pod])
        await until(lambda: place.events(name_of(heir)), bool, every=0.1)
        await place.promise(checkpoint, Heir(claim="on its way", since=time.time()))
        await owners.scale("Deployment", 2)
        await settle()
        assert [name_of(one) for one in await owners.pods(1, besides=[pod])] == [name_of(heir)]
        await place.promise(checkpoint, Heir(claim="on its way", since=time.time(), pod="gone"))
        (second,) = await owners.pods(1, besides=[pod, heir])

        assert source_of(second) == checkpoint


async def test_the_successor_of_a_pod_that_goes_early_waits_for_its_checkpoint(
    own_cluster: Cluster, account: Path
) -> None:
    """As when a node is drained while its pods are checkpointed."""
    async with world(own_cluster, account, seconds=2.0) as place, asked(place):
        owners = Owners(place)
        (pod,) = await owners.make("Deployment")
        evicting = asyncio.create_task(owners.evict(pod))
        await until(place.at_work, bool, every=0.1)
        await place.kube.delete(PODS, place.namespace, name_of(pod), uid=pod["metadata"]["uid"])
        left = await evicting
        (heir,) = await owners.pods(1, besides=[pod])

        assert [source_of(heir)] == left


async def test_an_heir_that_never_ran_leaves_its_promise(owners: Owners, place: World) -> None:
    async with asked(place):
        (pod,) = await owners.make("Deployment")
        (checkpoint,) = await owners.evict(pod)
        (heir,) = await owners.pods(1, besides=[pod])
        await until(place.heirs, lambda pods: pods == [name_of(heir)], every=0.1)
        await place.kube.delete(PODS, place.namespace, name_of(heir), uid=heir["metadata"]["uid"])
        (next_one,) = await owners.pods(1, besides=[pod, heir])

        assert (source_of(heir), source_of(next_one)) == (checkpoint, checkpoint)


@pytest.mark.parametrize("wish", ["wait", "image"])
async def test_a_pod_waits_for_a_cordoned_node_unless_told_otherwise(
    owners: Owners, place: World, wish: str
) -> None:
    async with asked(place):
        (pod,) = await owners.make("Deployment", annotations={NODE_UNAVAILABLE_ANNOTATION: wish})
        await place.kube.patch(NODES, "", place.node, {"spec": {"unschedulable": True}})
        (checkpoint,) = await owners.evict(pod)
        (heir,) = await owners.pods(1, besides=[pod])

        assert source_of(heir) == (checkpoint if wish == "wait" else "")


async def test_the_certificate_is_renewed_while_pods_are_made(place: World) -> None:
    async def stored() -> Any:
        secret = await place.kube.get(SECRETS, "kybernate", "kybernate-webhook")
        assert secret
        assert await is_asked(place.kube, place.namespace)
        return secret["data"]["tls.crt"]

    nothing = {"data": None}
    await place.kube.patch(SECRETS, "kybernate", "kybernate-webhook", nothing)
    async with asked(place, webhook_certificate_seconds=6.0):
        for _ in range(2):
            before = await stored()
            await until(stored, partial(ne, before), every=0.2)
