"""The statuses of custom resources follow from actions and pods, and conditions from each other."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.kube import checkpoints, conditions, restores
from controller.kube.conditions import Conditions, Refusal
from controller.kube.pods import Source, source
from schemas import reasons
from schemas.actions import Action, ActionState, StepProgress
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.failures import Failure
from schemas.kubernetes import (
    CheckpointGpu,
    CheckpointPhase,
    CheckpointSpec,
    Condition,
    KybernateCheckpoint,
    KybernateRestore,
    ObjectMeta,
    RestorePhase,
    RestoreSpec,
    TargetPod,
)
from schemas.manifest import CheckpointFacts, PartFacts
from schemas.messages import Checkpointed
from schemas.orders import CheckpointOrder
from tests.support.kube_pods import running_pod

UID = "0f0e0d0c-0000-4000-8000-000000000001"
NOW = 1_800_000_000.0
META = ObjectMeta(name="first", namespace="default", uid=UID, generation=1)


def found() -> Source:
    taken = source(running_pod(), None)
    assert isinstance(taken, Source)
    return taken


def begun(**spec: Any) -> KybernateCheckpoint:
    of = KybernateCheckpoint(metadata=META, spec=CheckpointSpec(pod_name="counter-5d9-x", **spec))
    return msgspec.structs.replace(of, status=checkpoints.begun(of, found(), NOW))


def facts() -> CheckpointFacts:
    taken = found()
    return CheckpointFacts(
        id=UID,
        node="node-1",
        parts=tuple(PartFacts(name=one.name, target=one.target) for one in taken.parts),
        created=NOW,
        size=1536,
        pod=taken.pod,
    )


def action(of: KybernateCheckpoint, state: ActionState, **more: Any) -> Action:
    identifier = of.status.action if of.status else None
    assert identifier
    return Action(
        id=identifier,
        kind="checkpoint",
        node="node-1",
        order=checkpoints.order_of(identifier, of.spec, found()),
        state=state,
        created=NOW,
        updated=NOW + 3,
        deadline=NOW + 600,
        **more,
    )


def kinds(told: tuple[Condition, ...]) -> dict[str, tuple[str, str]]:
    return {one.type: (one.status, one.reason) for one in told}


def test_the_same_resource_always_leads_to_the_same_action() -> None:
    one, other = begun(), begun()

    assert one.status
    assert other.status
    assert one.status.action == other.status.action == checkpoints.action_id(UID, 1)
    assert checkpoints.action_id(UID, 2) != checkpoints.action_id(UID, 1)


def test_a_running_action_is_in_progress_at_its_step() -> None:
    of = begun()
    steps = (StepProgress(step="dump", started=NOW),)
    told = checkpoints.followed(of, action(of, ActionState.RUNNING, steps=steps), NOW)

    assert told.phase is CheckpointPhase.IN_PROGRESS
    assert "dump" in told.conditions[0].message
    assert kinds(told.conditions).keys() == {"Ready", "Reconciling"}


def test_a_durable_checkpoint_is_told_while_its_pod_ends_and_what_was_noted_afterwards() -> None:
    of, result = begun(), Checkpointed(checkpoint=facts())
    told = checkpoints.followed(of, action(of, ActionState.RUNNING, result=result), NOW)
    assert told.phase is CheckpointPhase.IN_PROGRESS
    assert "is durable" in told.conditions[0].message

    steps = (StepProgress(step="retire", started=NOW, note="nobody ended it"),)
    ended = action(of, ActionState.COMPLETED, result=result, steps=steps)
    words = checkpoints.followed(of, ended, NOW).conditions[0].message
    assert words == f"checkpoint {UID} is durable; nobody ended it"


def test_a_completed_action_is_told_with_size_and_duration() -> None:
    of = begun()
    done = action(of, ActionState.COMPLETED, result=Checkpointed(checkpoint=facts()))
    told = checkpoints.followed(of, done, NOW + 4)

    assert told.phase is CheckpointPhase.COMPLETED
    assert (told.checkpoint_ref, told.checkpoint_size, told.duration) == (UID, "1.5Ki", "3.0s")
    assert kinds(told.conditions) == {"Ready": ("True", "CheckpointCompleted")}
    assert checkpoints.followed(msgspec.structs.replace(of, status=told), done, NOW + 9) == told


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            {
                "state": ActionState.FAILED,
                "failure": Failure(reason=reasons.DUMP_FAILED, message="no", advice="try"),
            },
            reasons.DUMP_FAILED,
        ),
        ({"state": ActionState.CANCELLED}, reasons.CANCELLED),
    ],
)
def test_a_failed_action_stalls_with_its_own_reason(more: Any, reason: str) -> None:
    of = begun()
    told = checkpoints.followed(of, action(of, **more), NOW)

    assert told.phase is CheckpointPhase.FAILED
    assert kinds(told.conditions) == {
        "Ready": ("False", "CheckpointFailed"),
        "Stalled": ("True", reason),
    }


def test_an_edit_is_noticed_by_field() -> None:
    order = action(begun(), ActionState.PENDING).order
    spec = begun().spec

    assert isinstance(order, CheckpointOrder)
    assert checkpoints.edited(spec, order) == ""
    named = msgspec.structs.replace(spec, container_name="counter")
    assert checkpoints.edited(named, order) == ""
    other = msgspec.structs.replace(spec, pod_name="other", leave_running=True)
    assert checkpoints.edited(other, order) == "spec.podName, spec.leaveRunning"
    vouched = msgspec.structs.replace(spec, gpu=CheckpointGpu(independent_processes=True))
    assert checkpoints.edited(vouched, order) == "spec.gpu"
    assert checkpoints.order_of(UID, vouched, found()).independent_gpu_processes


def ready(**more: Any) -> CatalogueEntry:
    state = more.pop("state", CheckpointState.READY)
    known = msgspec.structs.replace(facts(), **more)
    return CatalogueEntry(facts=known, state=state, updated=NOW)


@pytest.mark.parametrize(
    ("entry", "node", "reason"),
    [
        (None, None, conditions.CHECKPOINT_NOT_FOUND),
        (ready(state=CheckpointState.MISSING), None, conditions.CHECKPOINT_NOT_READY),
        (ready(state=CheckpointState.DELETED), None, conditions.CHECKPOINT_NOT_FOUND),
        (ready(pod=None), None, conditions.CHECKPOINT_UNUSABLE),
        (ready(place="memory"), None, conditions.CHECKPOINT_UNUSABLE),
        (
            ready(pod=msgspec.structs.replace(found().pod, namespace="other")),
            None,
            conditions.OTHER_NAMESPACE,
        ),
        (ready(), "node-2", conditions.NODE_LACKS_CHECKPOINT),
        (ready(), "node-1", ""),
        (ready(), None, ""),
    ],
)
def test_only_a_checkpoint_of_this_namespace_and_node_is_usable(
    entry: CatalogueEntry | None, node: str | None, reason: str
) -> None:
    spec = RestoreSpec(checkpoint_ref="first", target_pod=TargetPod(node_name=node))
    told = restores.usable(spec, "default", entry)

    assert (told.reason if isinstance(told, Refusal) else "") == reason


def restoring(timeout: int = 60) -> KybernateRestore:
    spec = RestoreSpec(checkpoint_ref=UID, timeout=timeout)
    of = KybernateRestore(metadata=META, spec=spec)
    return msgspec.structs.replace(of, status=restores.reserved(of, facts(), NOW))


def test_a_restore_follows_its_pod() -> None:
    of, pod = restoring(), running_pod()
    told = restores.followed(of, pod, NOW + 2)

    assert told.phase is RestorePhase.RUNNING
    assert (told.duration, told.node_name) == ("2.0s", "node-1")
    pod["status"] = {"phase": "Pending"}
    assert restores.followed(of, pod, NOW + 2).phase is RestorePhase.RESTORING
    late = restores.followed(of, pod, NOW + 61)
    assert kinds(late.conditions)["Stalled"] == ("True", reasons.DEADLINE_EXCEEDED)
    pod["status"] = {"phase": "Failed", "message": "evicted"}
    ended = restores.followed(of, pod, NOW + 2)
    assert kinds(ended.conditions)["Stalled"] == ("True", conditions.POD_FAILED)
    assert "evicted" in ended.conditions[0].message


def test_a_checkpoint_that_is_not_ready_yet_is_waited_for() -> None:
    told = restores.referred(RestoreSpec(checkpoint_ref="first"), begun())

    assert isinstance(told, Refusal)
    assert told.reason == conditions.CHECKPOINT_NOT_READY
    assert told.reason in restores.WAITED_FOR


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = Conditions(before=(), generation=1, now=NOW).working("One", "")
    same = Conditions(before=first, generation=1, now=NOW + 60).working("Two", "")
    done = Conditions(before=same, generation=1, now=NOW + 90).done("Three", "")

    assert same[0].last_transition_time == first[0].last_transition_time
    assert same[0].reason == "Two"
    assert done[0].last_transition_time != first[0].last_transition_time


@given(st.integers(0, 2**60))
def test_a_size_is_a_quantity_and_about_right(count: int) -> None:
    told = conditions.size(count)
    unit = told.lstrip("0123456789.")
    factor = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]

    assert abs(float(told.removesuffix(unit)) * factor - count) <= factor / 10


@given(st.floats(0, 4e9))
def test_a_time_survives_being_written(now: float) -> None:
    assert abs(conditions.seconds(conditions.timestamp(now)) - now) <= 1


@pytest.mark.parametrize(("given_", "told"), [(0.44, "0.4s"), (12.2, "12s"), (200, "3m20s")])
def test_a_duration_is_short(given_: float, told: str) -> None:
    assert conditions.duration(given_) == told
