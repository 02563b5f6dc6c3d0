"""What is asked at the wrong moment, or of what there is not: told in words, waited for where that
may change by itself, and nothing half-made stays. Against a real API server.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from controller.kube.client import CHECKPOINTS, PODS, RESTORES, Resource
from controller.nodes import FRESH_SECONDS
from kybernate.embedded.kubernetes.cluster import Cluster
from schemas import reasons
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.gpus import GpuFacts
from schemas.names import CHECKPOINTS_BUCKET
from tests.support.kube_world import World, condition, settle, world

QUOTAS = Resource(api="/api/v1", plural="resourcequotas")
H200 = GpuFacts(index=0, uuid="GPU-1", model="H200", memory_bytes=150 << 30, driver="580")
HELD: dict[str, Any] = {"metadata": {"finalizers": ["example.org/holds"]}}
LET_GO: dict[str, Any] = {"metadata": {"finalizers": []}}


@pytest.fixture
async def place(cluster: Cluster, kubeconfig: Path) -> AsyncIterator[World]:
    async with world(cluster, kubeconfig) as here:
        yield here


async def completed(place: World, name: str = "first") -> str:
    await place.pod("counter")
    await place.checkpoint(name, podName="counter", leaveRunning=True)
    return str((await place.in_phase(CHECKPOINTS, name, "Completed"))["checkpointRef"])


async def known_as(place: World, checkpoint: str, **changes: Any) -> None:
    """As if the catalogue knew something else of it."""
    table = place.bus.table(CHECKPOINTS_BUCKET, CatalogueEntry)
    row = await table.get(checkpoint)
    assert row is not None
    await table.update(checkpoint, msgspec.structs.replace(row.value, **changes), row.revision)


async def is_refused(place: World, resource: Resource, name: str, reason: str) -> str:
    """It failed for that reason, says what to do by condition and event, and made nothing."""
    before = list(place.worker.done)
    status = await place.in_phase(resource, name, "Failed")
    told = condition(status, "Stalled")
    assert told["reason"] == reason
    assert (await place.events(name))[reason] == told["message"]
    assert place.worker.done == before
    pods, _ = await place.kube.listed(PODS, selector="kybernate.io/restore")
    assert place.namespace not in {pod["metadata"]["namespace"] for pod in pods}
    return str(told["message"])


async def takes_no_jobs(place: World) -> None:
    """The node says so, and no controller thinks otherwise any more."""
    place.worker.ready = False
    await asyncio.sleep(FRESH_SECONDS + 1)


async def waits(place: World, resource: Resource, name: str, reason: str) -> None:
    """It says what it waits for, by condition and event."""
    found = await place.once(resource, name, lambda one: _reconciling(one) == reason)
    assert condition(found["status"], "Ready")["status"] == "False"
    assert reason in await place.events(name)


def _reconciling(one: Any) -> str:
    conditions = one.get("status", {}).get("conditions", ())
    return next((each["reason"] for each in conditions if each["type"] == "Reconciling"), "")


async def delete(place: World, resource: Resource, name: str) -> None:
    found = await place.kube.get(resource, place.namespace, name)
    assert found is not None
    await place.kube.delete(resource, place.namespace, name, uid=found["metadata"]["uid"])


async def test_a_pod_that_is_being_deleted(place: World) -> None:
    pod = await place.pod("counter")
    await place.kube.patch(PODS, place.namespace, "counter", HELD)
    await place.kube.delete(PODS, place.namespace, "counter", uid=pod["metadata"]["uid"])
    async with place.controllers():
        await place.checkpoint("first", podName="counter")

        assert "is being deleted" in await is_refused(place, CHECKPOINTS, "first", "PodTerminating")
    await place.kube.patch(PODS, place.namespace, "counter", LET_GO)


async def test_a_pod_of_another_runtime_than_containerd(place: World) -> None:
    (container,) = (await place.pod("counter"))["status"]["containerStatuses"]
    elsewhere = {"status": {"containerStatuses": [container | {"containerID": "docker://1"}]}}
    await place.kube.patch(PODS, place.namespace, "counter", elsewhere, part="status")
    async with place.controllers():
        await place.checkpoint("first", podName="counter")

        told = await is_refused(place, CHECKPOINTS, "first", "RuntimeUnsupported")
        assert "runs in docker" in told


async def test_a_pod_that_was_replaced_while_its_node_was_waited_for(place: World) -> None:
    await takes_no_jobs(place)
    async with place.controllers():
        old = await place.pod("counter")
        await place.checkpoint("first", podName="counter")
        await waits(place, CHECKPOINTS, "first", reasons.NODE_NOT_READY)
        uid = old["metadata"]["uid"]
        await place.kube.delete(PODS, place.namespace, "counter", uid=uid, grace=0)
        await place.once(PODS, "counter", lambda pod: pod is None)
        await place.pod("counter")
        place.worker.ready = True

        assert "ask anew" in await is_refused(place, CHECKPOINTS, "first", "SourcePodReplaced")


async def test_a_node_that_takes_no_jobs_is_waited_for(place: World) -> None:
    async with place.controllers():
        await completed(place)
        await takes_no_jobs(place)
        await place.checkpoint("second", podName="counter", leaveRunning=True)
        await place.restore("back", checkpointRef="first")
        await waits(place, CHECKPOINTS, "second", reasons.NODE_NOT_READY)
        await waits(place, RESTORES, "back", reasons.NODE_NOT_READY)
        place.worker.ready = True

        await place.in_phase(CHECKPOINTS, "second", "Completed")
        await place.in_phase(RESTORES, "back", "Restoring")


async def test_a_checkpoint_whose_node_takes_no_jobs_is_not_deleted_yet(place: World) -> None:
    async with place.controllers():
        checkpoint = await completed(place)
        await takes_no_jobs(place)
        await delete(place, CHECKPOINTS, "first")
        await place.once(CHECKPOINTS, "first", lambda one: "deletionTimestamp" in one["metadata"])
        await settle()
        assert "spec.deletionPolicy" in (await place.events("first"))["DeleteWaits"]

        keep = {"spec": {"deletionPolicy": "Keep"}}
        await place.kube.patch(CHECKPOINTS, place.namespace, "first", keep)
        await place.once(CHECKPOINTS, "first", lambda one: one is None)
        assert await place.catalogue() == {checkpoint: "ready"}


async def test_a_checkpoint_that_failed(place: World) -> None:
    async with place.controllers():
        await place.checkpoint("first", podName="other")
        await place.in_phase(CHECKPOINTS, "first", "Failed")
        await place.restore("back", checkpointRef="first")

        assert "failed" in await is_refused(place, RESTORES, "back", "CheckpointUnusable")


async def test_a_checkpoint_that_is_being_made_is_waited_for(place: World) -> None:
    place.worker.paused.clear()
    async with place.controllers():
        await place.pod("counter")
        await place.checkpoint("first", podName="counter", leaveRunning=True)
        await place.restore("back", checkpointRef="first")
        await waits(place, RESTORES, "back", "CheckpointNotReady")
        place.worker.paused.set()

        await place.in_phase(RESTORES, "back", "Restoring")


async def test_a_checkpoint_that_its_node_has_lost_is_waited_for_up_to_the_time_out(
    place: World,
) -> None:
    async with place.controllers():
        lost = {"state": CheckpointState.MISSING, "problem": "its folder is gone"}
        await known_as(place, await completed(place), **lost)
        await place.restore("back", checkpointRef="first", timeout=4)
        await waits(place, RESTORES, "back", "CheckpointNotReady")

        assert "its folder is gone" in await is_refused(
            place, RESTORES, "back", "CheckpointNotReady"
        )


async def test_gpus_that_no_node_has(place: World) -> None:
    async with place.controllers():
        checkpoint = await completed(place)
        facts = (await place.entries())[0].facts
        await known_as(place, checkpoint, facts=msgspec.structs.replace(facts, gpus=(H200,)))
        await place.restore("back", checkpointRef="first")

        told = await is_refused(place, RESTORES, "back", reasons.GPU_MISFIT)
        assert "it needs 1 × H200 with 150 GiB, the node has 0 such" in told
        assert "kybernate get nodes" in told


async def test_a_pod_that_the_api_server_does_not_want(place: World) -> None:
    async with place.controllers():
        await completed(place)
        quota = {"metadata": {"name": "full"}, "spec": {"hard": {"pods": "1"}}}
        await place.kube.create(QUOTAS, place.namespace, quota)
        await place.restore("back", checkpointRef="first")

        assert "the API server refuses the pod" in await is_refused(
            place, RESTORES, "back", "PodRefused"
        )


async def test_an_edited_restore_does_nothing_again_and_says_so(place: World) -> None:
    async with place.controllers():
        await completed(place)
        await place.restore("back", checkpointRef="first")
        name = (await place.in_phase(RESTORES, "back", "Restoring"))["restoredPodName"]
        await place.once(PODS, name, bool)
        await place.run_pod(name)
        await place.in_phase(RESTORES, "back", "Running")
        edited = {"spec": {"targetPod": {"name": "other"}}}
        await place.kube.patch(RESTORES, place.namespace, "back", edited)

        told = await place.once(RESTORES, "back", lambda one: condition(one["status"], "Stalled"))
        assert condition(told["status"], "Stalled")["reason"] == "SpecChanged"
        assert "make a new resource" in (await place.events("back"))["SpecChanged"]
        assert told["status"]["phase"] == "Running"
        assert await place.kube.get(PODS, place.namespace, "other") is None
