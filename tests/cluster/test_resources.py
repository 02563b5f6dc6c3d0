"""Custom resources against a real API server: what they lead to, and what they say of it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.kube.client import CHECKPOINTS, PODS, RESTORES, KubeRefused, Resource
from kybernate.embedded.kubernetes.cluster import Cluster
from schemas import reasons
from schemas.kubernetes import API_VERSION
from tests.support.controllers import until
from tests.support.fake_worker import failure
from tests.support.kube_world import World, condition, settle, world


@pytest.fixture
async def place(cluster: Cluster, kubeconfig: Path) -> AsyncIterator[World]:
    async with world(cluster, kubeconfig) as here:
        yield here


async def completed(place: World, name: str = "first", **spec: Any) -> Any:
    await place.pod("counter")
    await place.checkpoint(name, podName="counter", **spec)
    return await place.in_phase(CHECKPOINTS, name, "Completed")


async def test_a_checkpoint_is_made_shown_and_told(place: World, cluster: Cluster) -> None:
    async with place.controllers():
        status = await completed(place, leaveRunning=True)

        assert await place.catalogue() == {status["checkpointRef"]: "ready"}
        assert (status["nodeName"], status["checkpointSize"]) == (place.node, "4Ki")
        assert condition(status, "Ready")["status"] == "True"
        assert condition(status, "Ready")["reason"] == "CheckpointCompleted"
        assert condition(status, "Reconciling") is condition(status, "Stalled") is None
        events = await place.events("first")
        assert events.keys() == {"CheckpointInProgress", "CheckpointCompleted"}
        shown = await cluster.kubectl("get", "kyc", "--namespace", place.namespace)
        assert shown.split()[:6] == ["NAME", "PHASE", "POD", "NODE", "SIZE", "DURATION"]
        assert shown.split()[7:11] == ["first", "Completed", "counter", place.node]
        assert await place.kube.get(PODS, place.namespace, "counter")


async def test_a_pod_that_is_not_left_running_goes(place: World) -> None:
    async with place.controllers():
        await completed(place)

        await place.once(PODS, "counter", lambda pod: pod is None)


@pytest.mark.parametrize(("policy", "left"), [("Delete", "deleted"), ("Keep", "ready")])
async def test_the_checkpoint_goes_with_its_resource_unless_it_is_kept(
    place: World, policy: str, left: str
) -> None:
    async with place.controllers():
        status = await completed(place, leaveRunning=True, deletionPolicy=policy)
        await delete(place, "first")

        await place.once(CHECKPOINTS, "first", lambda one: one is None)
        assert await place.catalogue() == {status["checkpointRef"]: left}


async def test_what_is_deleted_while_it_is_made_is_undone(
    cluster: Cluster, kubeconfig: Path
) -> None:
    async with world(cluster, kubeconfig, seconds=3.0) as place, place.controllers():
        await place.pod("counter")
        await place.checkpoint("first", podName="counter")
        await place.in_phase(CHECKPOINTS, "first", "InProgress")
        await delete(place, "first")

        await place.once(CHECKPOINTS, "first", lambda one: one is None)
        assert "ready" not in (await place.catalogue()).values()
        assert await place.kube.get(PODS, place.namespace, "counter")


TWO = [{"name": "one", "image": "none"}, {"name": "two", "image": "none"}]
SCRATCH = [{"name": "scratch", "emptyDir": {"medium": "HugePages"}}]


@pytest.mark.parametrize(
    ("pod", "spec", "reason"),
    [
        ({}, {"podName": "other"}, "SourcePodNotFound"),
        ({"run": False}, {}, "PodNotRunning"),
        ({"containers": TWO, "run": False}, {}, "PodNotRunning"),
        ({"volumes": SCRATCH}, {}, "VolumeCannotComeAlong"),
        ({"hostPID": True}, {}, "PodUnsupported"),
        ({}, {"containerName": "other"}, "ContainerNotFound"),
        ({}, {"storage": {"type": "s3"}}, "NotServed"),
    ],
)
async def test_what_cannot_be_checkpointed_is_refused_in_words(
    place: World, pod: Any, spec: Any, reason: str
) -> None:
    async with place.controllers():
        await place.pod("counter", **pod)
        await place.checkpoint("first", **{"podName": "counter"} | spec)
        status = await place.in_phase(CHECKPOINTS, "first", "Failed")

        assert condition(status, "Stalled")["reason"] == reason
        assert condition(status, "Ready")["reason"] == "CheckpointFailed"
        message = condition(status, "Stalled")["message"]
        assert await place.events("first") == {reason: message}
        assert not place.worker.done


async def test_a_node_without_a_worker_is_waited_for_up_to_the_time_out(place: World) -> None:
    async with place.controllers():
        await place.pod("counter", nodeName="nobody")
        await place.checkpoint("first", podName="counter", timeout=2)
        status = await place.in_phase(CHECKPOINTS, "first", "Failed")

        assert condition(status, "Stalled")["reason"] == reasons.UNKNOWN_NODE
        assert reasons.UNKNOWN_NODE in await place.events("first")


async def test_why_a_worker_failed_is_shown(cluster: Cluster, kubeconfig: Path) -> None:
    def fails(_job: Any) -> Any:
        return failure(retriable=False)

    async with world(cluster, kubeconfig, fails=fails) as place, place.controllers():
        await place.pod("counter")
        await place.checkpoint("first", podName="counter")
        status = await place.in_phase(CHECKPOINTS, "first", "Failed")

        assert condition(status, "Stalled")["reason"] == reasons.DUMP_FAILED
        assert "as told" in condition(status, "Stalled")["message"]
        assert await place.kube.get(PODS, place.namespace, "counter")


async def test_an_edited_resource_does_nothing_again_and_says_so(place: World) -> None:
    async with place.controllers():
        await completed(place, leaveRunning=True)
        await edit(place, {"leaveRunning": False})

        told = await place.once(CHECKPOINTS, "first", _stalled)
        assert condition(told["status"], "Stalled")["reason"] == "SpecChanged"
        message = condition(told["status"], "Stalled")["message"]
        assert "spec.leaveRunning" in message
        assert (await place.events("first"))["SpecChanged"] == message
        assert len(place.worker.done) == 1
        assert await place.kube.get(PODS, place.namespace, "counter")

        await edit(place, {"leaveRunning": True})
        await place.once(CHECKPOINTS, "first", lambda one: not _stalled(one))


async def test_what_was_asked_while_no_controller_ran_is_done_once_by_two(place: World) -> None:
    await place.pod("counter")
    for name in ("first", "second"):
        await place.checkpoint(name, podName="counter", leaveRunning=True)
    async with place.controllers(2):
        one = await place.in_phase(CHECKPOINTS, "first", "Completed")
        other = await place.in_phase(CHECKPOINTS, "second", "Completed")
        await settle()

        assert one["checkpointRef"] != other["checkpointRef"]
        assert len(place.worker.done) == 2


async def test_a_restore_makes_a_pod_and_follows_it_until_it_runs(place: World) -> None:
    async with place.controllers(2):
        checkpoint = await completed(place)
        restore = await place.restore("back", checkpointRef="first")
        status = await place.in_phase(RESTORES, "back", "Restoring")
        name = f"counter-restored-{restore['metadata']['uid'][:5]}"
        assert status["restoredPodName"] == name
        pod = await place.once(PODS, name, bool)

        assert pod["metadata"]["annotations"] == {
            "kybernate.io/restore-from": checkpoint["checkpointRef"]
        }
        assert pod["metadata"]["labels"]["app"] == "counter"
        assert pod["spec"]["runtimeClassName"] == "kybernate"
        assert place.node in str(pod["spec"]["affinity"])

        await place.run_pod(name)
        status = await place.in_phase(RESTORES, "back", "Running")
        assert status["restoredPodUID"] == pod["metadata"]["uid"]
        assert condition(status, "Ready")["reason"] == "RestoreCompleted"
        assert (await place.events("back")).keys() == {"RestoreInProgress", "RestoreCompleted"}


async def test_two_restores_of_one_checkpoint_make_two_pods(place: World) -> None:
    async with place.controllers():
        checkpoint = await completed(place)
        await place.restore("one", checkpointRef=checkpoint["checkpointRef"])
        await place.restore("two", checkpointRef="first", targetPod={"name": "other"})

        for name in ("one", "two"):
            status = await place.in_phase(RESTORES, name, "Restoring")
            await place.once(PODS, status["restoredPodName"], bool)
            await place.run_pod(status["restoredPodName"])
            await place.in_phase(RESTORES, name, "Running")


async def test_a_pod_that_does_not_resume_is_deleted_and_its_words_are_kept(place: World) -> None:
    async with place.controllers():
        await completed(place)
        await place.restore("back", checkpointRef="first")
        name = (await place.in_phase(RESTORES, "back", "Restoring"))["restoredPodName"]
        await place.once(PODS, name, bool)
        words = {"reason": "RunContainerError", "message": "the checkpoint is damaged"}
        await place.run_pod(name, waiting=words)

        status = await place.in_phase(RESTORES, "back", "Failed")
        assert condition(status, "Stalled")["reason"] == "PodFailed"
        assert "the checkpoint is damaged" in condition(status, "Stalled")["message"]
        await place.once(PODS, name, lambda pod: pod is None)


async def test_a_pod_that_nobody_starts_is_given_up(place: World) -> None:
    async with place.controllers():
        await completed(place)
        await place.restore("back", checkpointRef="first", timeout=2)

        status = await place.in_phase(RESTORES, "back", "Failed")
        assert condition(status, "Stalled")["reason"] == reasons.DEADLINE_EXCEEDED
        await place.once(PODS, status["restoredPodName"], lambda pod: pod is None)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"checkpointRef": "other"}, "CheckpointNotFound"),
        ({"checkpointRef": "0f0e0d0c-0000-4000-8000-000000000001"}, "CheckpointNotFound"),
        ({"targetPod": {"nodeName": "other"}}, "NodeLacksCheckpoint"),
        ({"targetPod": {"name": "counter"}}, "PodNameTaken"),
    ],
)
async def test_what_cannot_be_restored_is_refused_in_words(
    place: World, spec: Any, reason: str
) -> None:
    async with place.controllers():
        await completed(place, leaveRunning=True)
        await place.restore("back", **{"checkpointRef": "first"} | spec)
        status = await place.in_phase(RESTORES, "back", "Failed")

        assert condition(status, "Stalled")["reason"] == reason
        assert "restoredPodName" not in status
        assert reason in await place.events("back")
        pods, _ = await place.kube.listed(PODS, selector="kybernate.io/restore")
        assert place.namespace not in {pod["metadata"]["namespace"] for pod in pods}


async def test_the_checkpoint_of_another_namespace_is_refused(
    place: World, cluster: Cluster, kubeconfig: Path
) -> None:
    async with place.controllers(), world(cluster, kubeconfig) as other:
        checkpoint = await completed(place, leaveRunning=True)
        await other.restore("back", checkpointRef=checkpoint["checkpointRef"])
        status = await other.in_phase(RESTORES, "back", "Failed")

        assert condition(status, "Stalled")["reason"] == "CheckpointOfAnotherNamespace"


async def test_controllers_go_on_after_the_api_server_was_killed(
    own_cluster: Cluster, account: Path
) -> None:
    assert own_cluster.control_plane
    server = own_cluster.control_plane.daemons["kube-apiserver"]
    async with world(own_cluster, account) as place, place.controllers():
        await completed(place, leaveRunning=True)
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: asyncio.sleep(0, server.pid), lambda pid: pid is None)
        server.start()
        await own_cluster.control_plane.ready()

        await place.checkpoint("second", podName="counter")
        await place.in_phase(CHECKPOINTS, "second", "Completed")


async def delete(place: World, name: str) -> None:
    found = await place.kube.get(CHECKPOINTS, place.namespace, name)
    assert found is not None
    uid = found["metadata"]["uid"]
    await place.kube.delete(CHECKPOINTS, place.namespace, name, uid=uid)


async def edit(place: World, spec: Any) -> None:
    await place.kube.patch(CHECKPOINTS, place.namespace, "first", {"spec": spec})


def _stalled(one: Any) -> bool:
    return condition(one["status"], "Stalled") is not None


WORKLOADS = Resource(api=CHECKPOINTS.api, plural="kybernateworkloads")
POD = {"containers": [{"name": "model", "image": "none", "env": [{"name": "A", "value": "b"}]}]}


async def workload(place: World, spec: Any) -> Any:
    body = {"apiVersion": API_VERSION, "kind": "KybernateWorkload", "metadata": {"name": "model"}}
    return await place.kube.create(WORKLOADS, place.namespace, body | {"spec": spec})


async def test_a_workload_is_kept_whole_and_filled_with_defaults(place: World) -> None:
    spec = (await workload(place, {"template": {"spec": POD}}))["spec"]

    assert spec == {
        "template": {"metadata": {}, "spec": POD},
        "suspend": {"enabled": False, "idleTimeout": 300, "storage": {"type": "local"}},
        "scaleToZero": {"enabled": False, "minReplicas": 0, "maxReplicas": 1},
        "activator": {"enabled": False, "port": 8080, "healthPath": "/", "queueTimeout": 30},
    }


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "spec.template"),
        ({"template": {}}, "spec.template.spec"),
        ({"template": {"spec": {}}}, "spec.template.spec.containers"),
        ({"template": {"spec": {"containers": []}}}, "spec.template.spec.containers"),
        ({"template": {"spec": POD}, "activator": {"port": 0}}, "spec.activator.port"),
        ({"template": {"spec": POD}, "activator": {"healthPath": "x"}}, "activator.healthPath"),
        ({"template": {"spec": POD}, "scaleToZero": {"minReplicas": -1}}, "minReplicas"),
        ({"template": {"spec": POD}, "suspend": {"idleTimeout": 0}}, "spec.suspend.idleTimeout"),
    ],
)
async def test_a_workload_that_makes_no_sense_is_refused(
    place: World, spec: Any, field: str
) -> None:
    with pytest.raises(KubeRefused, match=field):
        await workload(place, spec)
