"""Pods of owners, new and old, and what they left: for tests without an API server."""

from typing import Any

from schemas.checkpoints import CatalogueEntry, CheckpointState, Heir
from schemas.kubernetes import ADMISSION_ANNOTATION, RESUME_LABEL
from schemas.manifest import CheckpointFacts
from schemas.orders import Target
from schemas.pods import Owner, PodRecord
from tests.support.checkpoints import parts_of

NAMESPACE = "default"
NODE = "node-1"
SET = Owner(kind="ReplicaSet", name="counter-5d9", uid="5e7")
STATEFUL = Owner(kind="StatefulSet", name="counter", uid="57a", revision="r1")
JOB = Owner(kind="Job", name="counter", uid="70b")


def pod_of(owner: Owner | None, name: str = "", **metadata: Any) -> dict[str, Any]:
    """As its owner asks for it: the API server chooses the name where there is none."""
    labels = {RESUME_LABEL: "true"}
    annotations = dict(metadata.pop("annotations", {}))
    owners = []
    if owner is not None:
        owners = [{"kind": owner.kind, "name": owner.name, "uid": owner.uid, "controller": True}]
        if owner.revision:
            labels["controller-revision-hash"] = owner.revision
        if owner.index:
            annotations["batch.kubernetes.io/job-completion-index"] = owner.index
    named = {"name": name} if name else {"generateName": "counter-"}
    made = {"labels": labels, "annotations": annotations, "ownerReferences": owners}
    return {
        "metadata": {**named, **made, **metadata},
        "spec": {"containers": [{"name": "counter", "image": "busybox"}]},
    }


def promised_pod(claim: str, **status: Any) -> dict[str, Any]:
    """A pod that was admitted by the request `claim`, by its status."""
    pod = pod_of(SET, "counter-x", annotations={ADMISSION_ANNOTATION: claim})
    return pod | {"status": status}


def running() -> dict[str, Any]:
    return {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}


def left(
    checkpoint: str,
    owner: Owner | None,
    *,
    name: str = "counter-a",
    created: float = 1000.0,
    heir: Heir | None = None,
    state: CheckpointState = CheckpointState.READY,
    namespace: str = NAMESPACE,
    **facts: Any,
) -> CatalogueEntry:
    """The checkpoint of a pod that was ended with it."""
    record = PodRecord(
        namespace=namespace,
        name=name,
        uid=f"uid of {name}",
        node=NODE,
        template="{}",
        owner=owner,
    )
    known = CheckpointFacts(
        id=checkpoint,
        node=NODE,
        parts=parts_of(Target(namespace="k8s.io", container="c")),
        created=created,
        size=4096,
        pod=record,
        **facts,
    )
    return CatalogueEntry(facts=known, state=state, updated=created, heir=heir)
