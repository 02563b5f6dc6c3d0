"""AdmissionReview: what the API server asks before it makes a pod, and the answers. Pure.

https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
"""

import base64
from typing import Any, Final

import msgspec

from controller.kube import pods
from schemas.kubernetes import ADMISSION_ANNOTATION, RESTORE_FROM_ANNOTATION, Part
from schemas.manifest import CheckpointFacts

Json = dict[str, Any]

API_VERSION: Final = "admission.k8s.io/v1"
TOO_MANY_REQUESTS: Final = 429
AGAIN_SECONDS: Final = 1


class AdmissionRequest(Part, frozen=True, kw_only=True):
    """One pod that somebody wants to make."""

    uid: str
    namespace: str
    object: Json
    dry_run: bool = False


class AdmissionReview(Part, frozen=True, kw_only=True):
    request: AdmissionRequest


def admitted(uid: str, patch: list[Json], *, warning: str = "") -> Json:
    """The pod is made, with these changes."""
    answer: Json = {"uid": uid, "allowed": True}
    if patch:
        raw = base64.b64encode(msgspec.json.encode(patch)).decode()
        answer |= {"patchType": "JSONPatch", "patch": raw}
    if warning:
        answer["warnings"] = [warning]
    return _review(answer)


def sent_back(uid: str, message: str) -> Json:
    """The pod is not made now. Clients of Kubernetes ask again by themselves after a second."""
    status = {
        "code": TOO_MANY_REQUESTS,
        "reason": "TooManyRequests",
        "message": message,
        "details": {"retryAfterSeconds": AGAIN_SECONDS},
    }
    return _review({"uid": uid, "allowed": False, "status": status})


def resuming(pod: Json, request: str, facts: CheckpointFacts) -> list[Json]:
    """What makes the pod resume from the checkpoint, on the node that holds it."""
    spec = pod["spec"]
    fields = pods.placed(spec, facts.node, gpu=bool(facts.gpus))
    patch = [_annotated(pod, {RESTORE_FROM_ANNOTATION: facts.id, ADMISSION_ANNOTATION: request})]
    patch += [_set(f"/spec/{field}", value) for field, value in fields.items()]
    if "overhead" in spec and spec.get("runtimeClassName") != fields["runtimeClassName"]:
        patch.append({"op": "remove", "path": "/spec/overhead"})  # the other class's own
    return patch


def starting(pod: Json, request: str) -> list[Json]:
    """What shows that the pod was looked at."""
    return [_annotated(pod, {ADMISSION_ANNOTATION: request})]


def _annotated(pod: Json, more: dict[str, str]) -> Json:
    return _set("/metadata/annotations", pod["metadata"].get("annotations", {}) | more)


def _set(path: str, value: Any) -> Json:
    return {"op": "add", "path": path, "value": value}


def _review(answer: Json) -> Json:
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": answer}
