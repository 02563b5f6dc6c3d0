"""What the API server is answered, and what its patch makes of a pod."""

import base64
import json
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller.kube import admission, webhook
from controller.kube.admission import AdmissionRequest
from controller.kube.client import Json, KubeUnavailable
from kybernate.bus.port import BusUnavailable
from schemas.gpus import GpuFacts
from schemas.kubernetes import ADMISSION_ANNOTATION, RESTORE_FROM_ANNOTATION
from tests.support.owned_pods import NODE, SET, left, pod_of


def patched(pod: dict[str, Any], answer: Json) -> dict[str, Any]:
    """The pod as the API server has it then."""
    pod = json.loads(json.dumps(pod))
    for change in json.loads(base64.b64decode(answer["response"]["patch"])):
        *way, field = change["path"].strip("/").split("/")
        at = pod
        for name in way:
            at = at[name]
        if change["op"] == "remove":
            del at[field]
        else:
            at[field] = change["value"]
    return pod


def resumed(pod: dict[str, Any], **facts: Any) -> dict[str, Any]:
    known = left("c", SET, **facts).facts
    return patched(pod, admission.admitted("uid", admission.resuming(pod, "uid", known)))


def test_the_heir_resumes_where_the_checkpoint_is() -> None:
    pod = resumed(pod_of(SET, annotations={"team": "a"}))

    assert pod["metadata"]["annotations"] == {
        "team": "a",
        RESTORE_FROM_ANNOTATION: "c",
        ADMISSION_ANNOTATION: "uid",
    }
    assert pod["spec"]["runtimeClassName"] == "kybernate"
    terms = pod["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert terms == [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [NODE]}]}
    ]


def test_a_pod_without_annotations_is_given_some() -> None:
    pod = pod_of(SET)
    del pod["metadata"]["annotations"]

    assert resumed(pod)["metadata"]["annotations"][RESTORE_FROM_ANNOTATION] == "c"


def test_gpu_memory_wants_the_class_with_gpus() -> None:
    gpu = GpuFacts(index=0, uuid="GPU-1", model="H200", memory_bytes=1, driver="580")

    assert resumed(pod_of(SET), gpus=(gpu,))["spec"]["runtimeClassName"] == "kybernate-gpu"


def test_another_classs_overhead_goes_with_it() -> None:
    pod = pod_of(SET)
    pod["spec"] |= {"runtimeClassName": "nvidia", "overhead": {"cpu": "1"}}

    assert "overhead" not in resumed(pod)["spec"]
    pod["spec"]["runtimeClassName"] = "kybernate"
    assert "overhead" in resumed(pod)["spec"]


def test_who_starts_is_marked_as_seen() -> None:
    pod = pod_of(SET, annotations={"team": "a"})
    answer = admission.admitted("uid", admission.starting(pod, "uid"))

    assert patched(pod, answer)["metadata"]["annotations"] == {
        "team": "a",
        ADMISSION_ANNOTATION: "uid",
    }
    assert patched(pod, answer)["spec"] == pod["spec"]


REVIEW = {
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "request": {
        "uid": "uid",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "namespace": "default",
        "operation": "CREATE",
        "dryRun": True,
        "object": pod_of(SET),
        "oldObject": None,
    },
}


async def posted(body: bytes, answer: Any) -> tuple[int, str]:
    async with TestClient(TestServer(webhook.application(answer))) as client:
        response = await client.post("/admit", data=body)
        return response.status, await response.text()


async def test_a_review_is_read_and_answered() -> None:
    asked: list[AdmissionRequest] = []

    async def answer(request: AdmissionRequest) -> Json:
        asked.append(request)
        return admission.sent_back(request.uid, "later")

    status, text = await posted(msgspec.json.encode(REVIEW), answer)

    assert (asked[0].dry_run, asked[0].namespace) == (True, "default")
    told = json.loads(text)
    assert status == 200
    assert told["response"]["uid"] == "uid"
    assert told["response"]["status"]["code"] == 429
    assert told["response"]["status"]["details"] == {"retryAfterSeconds": 1}


@pytest.mark.parametrize("problem", [BusUnavailable("no NATS"), KubeUnavailable("no API server")])
async def test_who_cannot_answer_says_so(problem: Exception) -> None:
    async def answer(_request: AdmissionRequest) -> Json:
        raise problem

    assert await posted(msgspec.json.encode(REVIEW), answer) == (503, str(problem))


@pytest.mark.parametrize("body", [b"", b"{}", b'{"request": {"uid": 1}}', b"\xff"])
async def test_what_is_no_review_is_refused(body: bytes) -> None:
    async def answer(_request: AdmissionRequest) -> Json:
        raise AssertionError

    assert (await posted(body, answer))[0] == 400
