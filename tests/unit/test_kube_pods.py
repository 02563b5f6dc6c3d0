"""From a running pod to what is checkpointed, and from its record to the pod that resumes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.kube import conditions, pods
from controller.kube.conditions import Refusal
from controller.kube.pods import Source
from schemas.kubernetes import Resources, TargetPod
from schemas.orders import Part, Target
from tests.support.kube_pods import CONTAINER, running_pod

UID = "0f0e0d0c-0000-4000-8000-000000000001"


def taken(pod: dict[str, Any], container: str | None = None) -> Source:
    source = pods.source(pod, container)
    assert isinstance(source, Source)
    return source


def new_pod(pod: dict[str, Any], target: TargetPod | None = None, *, gpu: bool = False) -> Any:
    record = taken(pod).pod
    return pods.restored(
        record, target or TargetPod(), name="new", restore_uid=UID, checkpoint="c", gpu=gpu
    )


def test_the_only_container_of_a_running_pod_is_taken() -> None:
    source = taken(running_pod())

    assert source.node == "node-1"
    target = Target(namespace="k8s.io", container=CONTAINER)
    assert source.parts == (Part(name="counter", target=target),)
    assert source.pod.name == "counter-5d9-x"
    assert taken(running_pod(), "counter") == source


def of_two(state: dict[str, Any] | None = None) -> dict[str, Any]:
    """A pod with a second container, which runs, and with an init container that has ended."""
    pod = running_pod(initContainers=[{"name": "first"}])
    pod["spec"]["containers"].append({"name": "beside"})
    running: dict[str, Any] = {"running": {}}
    beside = {"name": "beside", "containerID": "containerd://b", "state": state or running}
    pod["status"]["containerStatuses"].insert(0, beside)
    return pod


def test_all_containers_of_a_pod_are_taken_or_the_one_that_is_named() -> None:
    names = [part.name for part in taken(of_two()).parts]
    (named,) = taken(of_two(), "beside").parts

    assert names == ["counter", "beside"]
    assert named == Part(name="beside", target=Target(namespace="k8s.io", container="b"))


@pytest.mark.parametrize(
    ("state", "told"), [({"waiting": {}}, "does not run"), ({"terminated": {}}, "has ended")]
)
def test_one_that_does_not_run_stands_in_the_way_of_all(state: dict[str, Any], told: str) -> None:
    refusal = pods.source(of_two(state), None)

    assert isinstance(refusal, Refusal)
    assert refusal.reason == conditions.POD_NOT_RUNNING
    assert told in refusal.message
    assert [part.name for part in taken(of_two(state), "counter").parts] == ["counter"]


def status(**changes: Any) -> dict[str, Any]:
    pod = running_pod()
    return pod | {"status": pod["status"] | changes}


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (status(phase="Pending"), conditions.POD_NOT_RUNNING),
        (status(phase="Succeeded"), conditions.POD_NOT_RUNNING),
        (status(containerStatuses=[]), conditions.POD_NOT_RUNNING),
        (
            status(containerStatuses=[{"name": "counter", "state": {"waiting": {}}}]),
            conditions.POD_NOT_RUNNING,
        ),
        (
            status(
                containerStatuses=[
                    {"name": "counter", "state": {"running": {}}, "containerID": "cri-o://a"}
                ]
            ),
            conditions.RUNTIME_UNSUPPORTED,
        ),
        (running_pod(hostPID=True), conditions.POD_UNSUPPORTED),
        (running_pod(shareProcessNamespace=True), conditions.POD_UNSUPPORTED),
        (
            running_pod(volumes=[{"name": "scratch", "emptyDir": {"medium": "HugePages-2Mi"}}]),
            conditions.VOLUME_CANNOT_COME_ALONG,
        ),
    ],
)
def test_what_cannot_be_checkpointed_is_refused_in_words(pod: Any, reason: str) -> None:
    refusal = pods.source(pod, None)

    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert "pod counter-5d9-x" in refusal.message


def test_a_pod_that_is_being_deleted_and_an_unknown_container_are_refused() -> None:
    going = running_pod()
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    assert pods.source(going, None).reason == conditions.POD_TERMINATING  # type: ignore[union-attr]
    unknown = pods.source(running_pod(), "other")
    assert unknown.reason == conditions.CONTAINER_NOT_FOUND  # type: ignore[union-attr]


def test_the_template_keeps_what_the_pod_is_and_drops_what_it_was_given() -> None:
    pod = running_pod()
    template = pods.template(pod)

    assert template["labels"] == {"app": "counter"}
    assert template["annotations"] == {"team": "a"}
    spec = template["spec"]
    assert spec["volumes"] == [{"name": "settings", "configMap": {"name": "settings"}}]
    assert [mount["name"] for mount in spec["containers"][0]["volumeMounts"]] == ["settings"]
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert spec["serviceAccountName"] == "default"
    assert spec.keys().isdisjoint(pods.OWNED_FIELDS)
    assert pod == running_pod()


def test_a_users_own_secret_at_another_place_stays() -> None:
    pod = running_pod()
    pod["spec"]["containers"][0]["volumeMounts"][1]["mountPath"] = "/token"

    assert len(pods.template(pod)["spec"]["volumes"]) == 2


def test_the_new_pod_asks_for_its_restore_on_the_node_of_the_data() -> None:
    pod = new_pod(running_pod())

    assert pod["metadata"]["annotations"]["kybernate.io/restore-from"] == "c"
    assert pod["metadata"]["labels"] == {"app": "counter", "kybernate.io/restore": UID}
    assert pod["spec"]["runtimeClassName"] == "kybernate"
    assert _terms(pod) == [{"matchFields": [_node("node-1")]}]
    assert new_pod(running_pod(), gpu=True)["spec"]["runtimeClassName"] == "kybernate-gpu"


def test_the_nodes_that_the_pod_wanted_are_still_wanted() -> None:
    wanted = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [wanted]}}
    pod = new_pod(
        running_pod(affinity={"nodeAffinity": required, "podAffinity": {"a": 1}}),
        TargetPod(node_selector={"gpu": "h200"}, resources=Resources(limits={"cpu": 2})),
    )

    assert _terms(pod) == [wanted | {"matchFields": [_node("node-1")]}]
    assert pod["spec"]["affinity"]["podAffinity"] == {"a": 1}
    assert pod["spec"]["nodeSelector"] == {"gpu": "h200"}
    assert pod["spec"]["containers"][0]["resources"] == {"limits": {"cpu": 2}}


def test_a_restored_pod_can_be_checkpointed_and_restored_again() -> None:
    again = running_pod()
    again |= {"spec": new_pod(running_pod())["spec"] | {"nodeName": "node-1"}}

    assert _terms(new_pod(again)) == [{"matchFields": [_node("node-1")]}]
    assert "kybernate.io/restore" not in json.loads(taken(again).pod.template)["labels"]


@given(st.from_regex(r"[a-z]([a-z0-9.-]{0,251}[a-z0-9])?", fullmatch=True))
def test_the_new_name_is_a_name_and_says_where_it_comes_from(original: str) -> None:
    name = pods.restored_name(original, TargetPod(), UID)

    assert len(name) <= pods.LONGEST_NAME
    assert name.endswith("-restored-0f0e0")
    assert name[0].isalnum()
    assert ".-" not in name.removesuffix("-restored-0f0e0")[-1] + "-"


@pytest.mark.parametrize("original", ["a", "a-restored-0a1b2", "a-restored-0a1b2-restored-fffff"])
def test_names_do_not_grow_from_restore_to_restore(original: str) -> None:
    assert pods.restored_name(original, TargetPod(), UID) == "a-restored-0f0e0"


def test_a_name_that_is_asked_for_is_taken() -> None:
    assert pods.restored_name("a", TargetPod(name="b"), UID) == "b"


WAITING = {"waiting": {"reason": "ContainerCreating"}}


@pytest.mark.parametrize(
    ("state", "trouble", "runs"),
    [
        ({"state": {"running": {}}}, False, True),
        ({"state": WAITING}, False, False),
        ({"state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}, False, False),
        ({"state": {"waiting": {"reason": "RunContainerError", "message": "no"}}}, True, False),
        ({"state": {"terminated": {"reason": "StartError", "message": "no"}}}, True, False),
        (
            {"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1}}},
            True,
            True,
        ),
    ],
)
def test_a_restored_pod_runs_or_is_in_trouble(state: Any, *, trouble: bool, runs: bool) -> None:
    phase = "Running" if runs else "Pending"
    pod = status(phase=phase, containerStatuses=[{"name": "counter"} | state])

    assert bool(pods.trouble(pod)) is trouble
    assert pods.runs(pod) is runs


def test_what_a_pod_waits_for_is_told() -> None:
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available",
    }
    pod = status(phase="Pending", containerStatuses=[], conditions=[unschedulable])

    assert pods.waits_for(pod) == "Unschedulable: 0/1 nodes are available"
    assert not pods.trouble(pod)


def _terms(pod: Any) -> Any:
    affinity = pod["spec"]["affinity"]["nodeAffinity"]
    return affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]


def _node(name: str) -> dict[str, Any]:
    return {"key": "metadata.name", "operator": "In", "values": [name]}


@pytest.mark.parametrize(("given", "left"), [(None, 1), (600, 1), (1, 1), (0, 0)])
def test_what_started_anew_beside_a_saved_state_goes_soon(given: Any, left: int) -> None:
    changes = {} if given is None else {"terminationGracePeriodSeconds": given}

    assert pods.grace_of(taken(running_pod(**changes)).pod) == left
