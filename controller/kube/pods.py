"""Pods as the API server tells them: what to checkpoint, and the new pod of a restore. Pure.

A template is what a new pod needs of the old one. What the API server, the scheduler and the
controllers wrote into the old one stays behind, so that it is nobody's replica and comes to rest
where the checkpoint is.
"""

import copy
import json
import re
from typing import Any, Final

import msgspec

from controller.kube.conditions import (
    CONTAINER_NOT_FOUND,
    POD_NOT_RUNNING,
    POD_TERMINATING,
    POD_UNSUPPORTED,
    RUNTIME_UNSUPPORTED,
    VOLUME_CANNOT_COME_ALONG,
    Refusal,
)
from schemas.kubernetes import (
    ADMISSION_ANNOTATION,
    GPU_RUNTIME_CLASS,
    RESTORE_FROM_ANNOTATION,
    RESTORE_LABEL,
    RUNTIME_CLASS,
    TargetPod,
)
from schemas.orders import Part, Target
from schemas.pods import Owner, PodRecord

Json = dict[str, Any]

NAMESPACE: Final = "k8s.io"
"""containerd's, where kubelet's containers are."""
SCHEME: Final = "containerd"
ACCOUNT_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
SHORTEST_GRACE: Final = 1
"""With none at all the API server would not wait for kubelet."""
LONGEST_NAME: Final = 63
RESTORED_ENDING: Final = re.compile(r"(-restored-[0-9a-f]{5})+$")
REVISION_LABEL: Final = "controller-revision-hash"
INDEX_ANNOTATION: Final = "batch.kubernetes.io/job-completion-index"

OWNED_LABELS: Final = frozenset(
    {
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-name",
        "controller-revision-hash",
        "controller-uid",
        "job-name",
        "pod-template-generation",
        "pod-template-hash",
        "statefulset.kubernetes.io/pod-name",
        RESTORE_LABEL,
    }
)
OWNED_ANNOTATIONS: Final = ("cni.projectcalico.org/", "k8s.v1.cni.cncf.io/", "k8s.ovn.org/")
OTHER_ANNOTATIONS: Final = frozenset(
    {
        "kubectl.kubernetes.io/last-applied-configuration",
        "kubernetes.io/limit-ranger",
        ADMISSION_ANNOTATION,
        RESTORE_FROM_ANNOTATION,
    }
)
OWNED_FIELDS: Final = (
    "ephemeralContainers",
    "nodeName",
    "overhead",
    "preemptionPolicy",
    "priority",
    "serviceAccount",
)
ADDED_TOLERATIONS: Final = frozenset(
    {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
)
NEVER_RAN: Final = frozenset({"StartError", "ContainerCannotRun"})
"""What a container ended with that could not even be started."""
SHARED: Final = ("hostPID", "hostIPC", "shareProcessNamespace")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be checkpointed, and where."""

    node: str
    parts: tuple[Part, ...]
    pod: PodRecord


def source(pod: Json, container: str | None) -> Source | Refusal:
    """The pod's containers, or the one that is named, or why they are not checkpointed."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp"):
        return _refuse(POD_TERMINATING, f"pod {name} is being deleted; checkpoint one that stays")
    if (phase := status.get("phase", "Unknown")) != "Running":
        return _refuse(POD_NOT_RUNNING, f"pod {name} is {phase}; wait until it runs")
    if refusal := _unsupported(name, pod["spec"], container):
        return refusal
    wanted = [one["name"] for one in pod["spec"]["containers"] if container in {None, one["name"]}]
    parts = [_part(name, one, status) for one in wanted]
    if refusals := [one for one in parts if isinstance(one, Refusal)]:
        return refusals[0]
    found = tuple(one for one in parts if isinstance(one, Part))
    return Source(node=pod["spec"]["nodeName"], parts=found, pod=_record(pod))


def _part(pod: str, name: str, status: Json) -> Part | Refusal:
    found = next((one for one in _statuses(status) if one["name"] == name), {})
    state = found.get("state", {})
    if "terminated" in state:
        words = (
            f"container {name} of pod {pod} has ended, and would start again in the new pod; "
            "name the container to checkpoint alone (spec.containerName)"
        )
        return _refuse(POD_NOT_RUNNING, words)
    if "running" not in state:
        return _refuse(POD_NOT_RUNNING, f"container {name} of pod {pod} does not run; wait for it")
    scheme, _, identifier = found.get("containerID", "").partition("://")
    if scheme != SCHEME:
        words = f"pod {pod} runs in {scheme}; checkpoint pods of nodes with containerd"
        return _refuse(RUNTIME_UNSUPPORTED, words)
    return Part(name=name, target=Target(namespace=NAMESPACE, container=identifier))


def template(pod: Json) -> Json:
    """Labels, annotations and spec, without what belongs to this pod alone."""
    metadata, spec = pod["metadata"], copy.deepcopy(pod["spec"])
    for field in OWNED_FIELDS:
        spec.pop(field, None)
    tolerations = [
        one for one in spec.pop("tolerations", ()) if one.get("key") not in ADDED_TOLERATIONS
    ]
    if tolerations:
        spec["tolerations"] = tolerations
    _drop_account_volume(spec)
    return {
        "labels": {
            key: value
            for key, value in metadata.get("labels", {}).items()
            if key not in OWNED_LABELS
        },
        "annotations": {
            key: value
            for key, value in metadata.get("annotations", {}).items()
            if key not in OTHER_ANNOTATIONS and not key.startswith(OWNED_ANNOTATIONS)
        },
        "spec": spec,
    }


def owner(pod: Json) -> Owner | None:
    """Who makes it anew when it goes, if anybody does."""
    metadata = pod["metadata"]
    found = [one for one in metadata.get("ownerReferences", ()) if one.get("controller")]
    if not found:
        return None
    return Owner(
        kind=found[0]["kind"],
        name=found[0]["name"],
        uid=found[0]["uid"],
        revision=metadata.get("labels", {}).get(REVISION_LABEL, ""),
        index=metadata.get("annotations", {}).get(INDEX_ANNOTATION, ""),
    )


def restored(
    record: PodRecord,
    target: TargetPod,
    *,
    name: str,
    restore_uid: str,
    checkpoint: str,
    gpu: bool,
) -> Json:
    """The pod that resumes from the checkpoint, on the node that holds it."""
    kept = json.loads(record.template)
    spec = kept["spec"]
    spec |= placed(spec, record.node, gpu=gpu)
    if target.node_selector:
        spec["nodeSelector"] = spec.get("nodeSelector", {}) | target.node_selector
    if target.resources is not None:
        spec["containers"][0]["resources"] = msgspec.to_builtins(target.resources)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": kept["labels"] | {RESTORE_LABEL: restore_uid},
            "annotations": kept["annotations"] | {RESTORE_FROM_ANNOTATION: checkpoint},
        },
        "spec": spec,
    }


def placed(spec: Json, node: str, *, gpu: bool) -> Json:
    """The fields of a pod's spec by which it resumes on that node."""
    was_gpu = spec.get("runtimeClassName") == GPU_RUNTIME_CLASS
    return {
        "runtimeClassName": GPU_RUNTIME_CLASS if gpu or was_gpu else RUNTIME_CLASS,
        "affinity": _bound(spec.get("affinity") or {}, node),
    }


def grace_of(record: PodRecord) -> int:
    """What the pod gets whose state is safe: whatever runs there now was started anew."""
    given = json.loads(record.template)["spec"].get("terminationGracePeriodSeconds", SHORTEST_GRACE)
    return min(int(given), SHORTEST_GRACE)


def restored_name(original: str, target: TargetPod, restore_uid: str) -> str:
    """The new pod's name: told, or the original's with five characters of the restore's UID.

    What was restored before is called after the first one, so that names do not grow.
    """
    ending = f"-restored-{restore_uid.replace('-', '')[:5]}"
    first = RESTORED_ENDING.sub("", original)
    return target.name or first[: LONGEST_NAME - len(ending)].rstrip("-.") + ending


def trouble(pod: Json) -> str:
    """Why a restored pod will not come to run; empty while it may, or does."""
    status = pod.get("status", {})
    if status.get("phase") in {"Failed", "Succeeded"}:
        return str(status.get("message") or f"its phase is {status['phase']}") + _ends(status)
    if pod["metadata"].get("deletionTimestamp"):
        return "it is being deleted"
    return next((words for one in _statuses(status) if (words := _broken(one))), "")


def runs(pod: Json) -> bool:
    """Its container runs, and is the one that was restored."""
    statuses = _statuses(pod.get("status", {}))
    phase = pod.get("status", {}).get("phase")
    return (
        bool(statuses) and phase == "Running" and all("running" in one["state"] for one in statuses)
    )


def began(pod: Json) -> bool:
    """A container of it has run, or does."""
    return any(
        _ran(state)
        for one in _statuses(pod.get("status", {}))
        for state in (one.get("state", {}), one.get("lastState", {}))
    )


def over(pod: Json) -> bool:
    """It will not run any more."""
    phase = pod.get("status", {}).get("phase")
    return bool(pod["metadata"].get("deletionTimestamp")) or phase in {"Failed", "Succeeded"}


def waits_for(pod: Json) -> str:
    """What a pod that does not run yet waits for, as far as it is told."""
    status = pod.get("status", {})
    told = [
        f"{condition.get('reason', '')}: {condition['message']}"
        for condition in status.get("conditions", ())
        if condition["status"] != "True" and condition.get("message")
    ]
    for one in _statuses(status):
        waiting = one.get("state", {}).get("waiting", {})
        if waiting.get("message"):
            told.insert(0, f"{waiting.get('reason', '')}: {waiting['message']}")
    return told[0] if told else ""


def unscheduled(pod: Json) -> str:
    """What the scheduler says of a pod for which it has found no node; empty if it has."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or "it is not scheduled")
    return ""


def takes_no_pods(node: Json | None) -> str:
    """Why a node takes no new pods; empty if it does."""
    if node is None:
        return "is gone"
    if node["spec"].get("unschedulable"):
        return "is cordoned"
    ready = [one for one in node["status"].get("conditions", ()) if one["type"] == "Ready"]
    return "" if ready and ready[0]["status"] == "True" else "is not ready"


def _unsupported(name: str, spec: Json, container: str | None) -> Refusal | None:
    containers = [one["name"] for one in spec["containers"]]
    if container is not None and container not in containers:
        words = f"pod {name} has no container {container}; it has {', '.join(containers)}"
        return _refuse(CONTAINER_NOT_FOUND, words)
    if shared := [field for field in SHARED if spec.get(field)]:
        words = (
            f"pod {name} uses {', '.join(shared)}, with which it cannot be checkpointed; leave "
            "that out of its spec"
        )
        return _refuse(POD_UNSUPPORTED, words)
    if volumes := [one["name"] for one in spec.get("volumes") or () if _is_of_huge_pages(one)]:
        words = (
            f"pod {name} has emptyDir volumes of huge pages ({', '.join(volumes)}), whose contents "
            "cannot come along; use the medium Memory"
        )
        return _refuse(VOLUME_CANNOT_COME_ALONG, words)
    return None


def _is_of_huge_pages(volume: Json) -> bool:
    return str((volume.get("emptyDir") or {}).get("medium", "")).startswith("HugePages")


def containers_of(record: PodRecord) -> list[str]:
    """The names of the containers that the pod had."""
    return [one["name"] for one in json.loads(record.template)["spec"]["containers"]]


def _record(pod: Json) -> PodRecord:
    metadata = pod["metadata"]
    return PodRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        node=pod["spec"]["nodeName"],
        template=json.dumps(template(pod), sort_keys=True),
        owner=owner(pod),
    )


def _drop_account_volume(spec: Json) -> None:
    """The service account's token: the new pod is given its own, at the same place."""
    containers = [*spec["containers"], *spec.get("initContainers", ())]
    mounted = {
        mount["name"]
        for one in containers
        for mount in one.get("volumeMounts", ())
        if mount["mountPath"] == ACCOUNT_FOLDER
    }
    given = {
        volume["name"]
        for volume in spec.get("volumes", ())
        if volume["name"] in mounted and _is_account(volume)
    }
    for one in containers:
        one["volumeMounts"] = [
            mount for mount in one.get("volumeMounts", ()) if mount["name"] not in given
        ]
    spec["volumes"] = [one for one in spec.get("volumes", ()) if one["name"] not in given]


def _is_account(volume: Json) -> bool:
    if volume["name"].startswith("kube-api-access-"):
        return "projected" in volume
    return "-token-" in volume["name"] and "secret" in volume


def _bound(affinity: Json, node: str) -> Json:
    """The affinity, and this node only."""
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    of_node = affinity.get("nodeAffinity", {})
    required = of_node.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = [
        term | {"matchFields": [*_other_fields(term), field]}
        for term in required.get("nodeSelectorTerms", ()) or [{}]
    ]
    needed = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return affinity | {"nodeAffinity": of_node | needed}


def _other_fields(term: Json) -> list[Json]:
    """Without the node's name: a pod that was restored before was bound to its node then."""
    return [one for one in term.get("matchFields", ()) if one["key"] != "metadata.name"]


def _statuses(status: Json) -> list[Json]:
    return list(status.get("containerStatuses", ()))


def _ran(state: Json) -> bool:
    ended = state.get("terminated")
    return "running" in state or (ended is not None and ended.get("reason") not in NEVER_RAN)


def _broken(container: Json) -> str:
    """Why a container is not the restored one any more, or never became it."""
    state = container.get("state", {})
    ended = state.get("terminated") or container.get("lastState", {}).get("terminated")
    if ended:
        words = ended.get("message") or f"exit code {ended.get('exitCode')}"
        return f"{ended.get('reason', 'Error')}: {words}"
    waiting = state.get("waiting", {})
    if waiting.get("reason") in {"CreateContainerError", "RunContainerError", "CrashLoopBackOff"}:
        return f"{waiting['reason']}: {waiting.get('message', '')}"
    return ""


def _ends(status: Json) -> str:
    words = next((words for one in _statuses(status) if (words := _broken(one))), "")
    return f" ({words})" if words else ""


def _refuse(reason: str, message: str) -> Refusal:
    return Refusal(reason=reason, message=message)
