"""Messages: what a reader takes, what it refuses, and that the exported schemas are current."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import export
from schemas.actions import Action, ActionState
from schemas.base import Record, Undecodable, decode, encode
from schemas.messages import Cancel, EventKind, Job, JobEvent, Restored, Result
from schemas.orders import (
    CheckpointOrder,
    DeleteOrder,
    Order,
    Place,
    RestoreOrder,
    Target,
    only_part,
    verb,
)
from schemas.requests import CheckpointRequest, Request, RestoreRequest

CHECKPOINT = "0f0e0d0c-0000-4000-8000-000000000001"
ROOT = Path(__file__).parents[2]
TARGET = Target(namespace="default", container="c")


def a_job(order: Order | None = None) -> Job:
    order = order or CheckpointOrder(parts=only_part(TARGET), checkpoint=CHECKPOINT)
    return Job(action="a", attempt=1, node="n", order=order, deadline=1.0)


def changed(record: Record, change: Callable[[dict[str, object]], object]) -> bytes:
    content = json.loads(encode(record))
    change(content)
    return json.dumps(content).encode()


ORDERS = st.one_of(
    st.builds(CheckpointOrder, parts=st.just(only_part(TARGET)), checkpoint=st.just(CHECKPOINT)),
    st.builds(
        RestoreOrder,
        part=st.just("c"),
        target=st.just(TARGET),
        checkpoint=st.just(CHECKPOINT),
    ),
    st.builds(DeleteOrder, checkpoint=st.just(CHECKPOINT)),
)


@given(
    st.builds(
        Job,
        order=ORDERS,
        deadline=st.floats(0, 1e12),
        attempt=st.integers(0, 2**53),
        action=st.text(st.characters(codec="utf-8")),
        node=st.text(st.characters(codec="utf-8")),
    )
)
def test_what_is_encoded_comes_back(job: Job) -> None:
    assert decode(encode(job), Job) == job


def test_a_job_is_named_by_action_and_attempt() -> None:
    assert a_job().id == "a.1"
    assert verb(a_job().order) == "checkpoint"


def test_the_version_is_always_written() -> None:
    assert json.loads(encode(a_job()))["version"] == 1
    assert json.loads(encode(Cancel(action="a")))["version"] == 1


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_version_is_refused_with_advice(version: int) -> None:
    raw = changed(a_job(), lambda content: content.update(version=version))
    with pytest.raises(Undecodable, match=f"{version} .*version.*only version 1 is known.*update"):
        decode(raw, Job)


def test_a_field_that_is_not_known_yet_is_ignored() -> None:
    raw = changed(a_job(), lambda content: content.update(priority="high"))
    assert decode(raw, Job) == a_job()


def test_an_optional_field_may_be_missing() -> None:
    raw = changed(a_job(), lambda content: content["order"].pop("place", None))  # type: ignore[attr-defined]
    assert decode(raw, Job) == a_job()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content["order"].update(verb="explode"), "explode"),
        (lambda content: content["order"].pop("verb"), "verb"),
        (lambda content: content.pop("order"), "order"),
        (lambda content: content.update(attempt="1"), "attempt"),
        (lambda content: content["order"].update(checkpoint="../x"), "checkpoint"),
        (lambda content: content["order"]["parts"][0].update(name="a/b"), "name"),
        (lambda content: content["order"]["parts"][0].update(name="-"), "name"),
        (lambda content: content["order"]["parts"][0].update(name="a" * 77), "name"),
        (lambda content: content["order"].update(parts=[]), "parts"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    change: Callable[[dict[str, object]], object], told: str
) -> None:
    with pytest.raises(Undecodable, match=told):
        decode(changed(a_job(), change), Job)


@pytest.mark.parametrize(
    ("parts", "place", "told"),
    [
        ((("a", "c"), ("a", "d")), Place.DISK, "same name"),
        ((("a", "c"), ("b", "c")), Place.DISK, "same container"),
        ((("a", "c"), ("b", "d")), Place.MEMORY, "memory"),
    ],
)
def test_containers_that_do_not_go_together_are_refused(
    parts: tuple[tuple[str, str], ...], place: Place, told: str
) -> None:
    listed = [
        {"name": name, "target": {"namespace": "default", "container": id}} for name, id in parts
    ]
    raw = changed(a_job(), lambda content: content["order"].update(parts=listed, place=place))  # type: ignore[attr-defined]
    with pytest.raises(Undecodable, match=told):
        decode(raw, Job)


@pytest.mark.parametrize("raw", [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"version":1}'])
def test_bytes_that_are_no_message_are_refused(raw: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(raw, Job)


@given(st.binary(max_size=64))
def test_any_bytes_are_decoded_or_refused(raw: bytes) -> None:
    for of in (Job, JobEvent, Action, Cancel):
        with pytest.raises(Undecodable):
            decode(raw, of)


def test_an_unknown_event_kind_is_refused() -> None:
    event = JobEvent(action="a", attempt=1, sequence=0, node="n", kind=EventKind.ACCEPTED, at=1.0)
    with pytest.raises(Undecodable, match="kind"):
        decode(changed(event, lambda content: content.update(kind="danced")), JobEvent)


def test_results_and_requests_are_told_apart_by_their_tag() -> None:
    restored = Restored(target=TARGET, pid=7, checkpoint=CHECKPOINT)
    assert decode(encode(restored), Result) == restored
    request = decode(b'{"kind":"checkpoint","container":"c"}', Request)
    assert request == CheckpointRequest(container="c")
    assert isinstance(
        decode(encode(RestoreRequest(checkpoint=CHECKPOINT)), Request), RestoreRequest
    )


@pytest.mark.parametrize("timeout", [0, -1, 24 * 3600 + 1])
def test_a_timeout_has_limits(timeout: float) -> None:
    with pytest.raises(Undecodable, match="timeout"):
        decode(b'{"kind":"checkpoint","container":"c","timeout":%d}' % timeout, Request)


def test_an_action_knows_whether_it_has_ended() -> None:
    action = Action(
        id="a",
        kind="checkpoint",
        node="n",
        order=a_job().order,
        state=ActionState.PENDING,
        created=1.0,
        updated=1.0,
        deadline=2.0,
    )
    assert not action.ended
    assert msgspec.structs.replace(action, state=ActionState.FAILED).ended
    assert decode(encode(action), Action) == action


def test_the_exported_schemas_are_current() -> None:
    assert export.stale() == []


def test_the_exported_schemas_describe_what_is_sent() -> None:
    schema = json.loads((export.FOLDER / "job.json").read_bytes())
    jsonschema.validate(json.loads(encode(a_job())), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"version": 1}, schema)


FIRST_USE = """
import sys, threading, time
import msgspec
from schemas.base import decode

inner = msgspec.defstruct("Inner", [(f"inner{n}", int | None, None) for n in range(40)])
fields = [(f"outer{n}", tuple[inner, ...], ()) for n in range(40)]
outer = msgspec.defstruct("Outer", fields)

def use(late):
    time.sleep(late)
    assert decode(b'{"outer39": [{"inner39": 1}]}', outer).outer39[0].inner39 == 1

sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=use, args=(number / 5000,)) for number in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_use_a_record_for_the_first_time_at_once_do_not_crash() -> None:
    for _ in range(10):
        ended = subprocess.run([sys.executable, "-c", FIRST_USE], cwd=ROOT, timeout=60, check=False)
        assert ended.returncode == 0
