"""The streams, buckets and consumers that Kybernate keeps on NATS, and how they are made.

Everything is idempotent and safe to race. What an operator changed on purpose (replicas,
placement) is left alone; what Kybernate relies on is put right.
"""

from typing import Any

import msgspec
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RePublish,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

from kybernate.bus.link import Link
from kybernate.bus.port import BusProblem, BusUnavailable, Mark, TopologyMissing
from schemas.base import decoder
from schemas.names import (
    BUCKETS,
    CONTROLLERS,
    EVENT_SUBJECTS,
    EVENTS_STREAM,
    JOB_SUBJECTS,
    JOBS_STREAM,
    MAX_MESSAGE_BYTES,
    job_subjects_of,
    worker_consumer,
)

_HEADER_ROOM_BYTES = 16 * 1024
_DUPLICATE_WINDOW_SECONDS = 120.0
_JOBS_MAX_AGE_SECONDS = 48 * 3600.0
"""Twice the longest deadline: what is older, nobody waits for."""
_EVENTS_MAX_AGE_SECONDS = 24 * 3600.0
_STREAM_MAX_BYTES = 128 * 1024 * 1024
_EVENTS_IN_FLIGHT = 8192

_OTHER_CONFIGURATION = 10058
_STREAM_NOT_FOUND = 10059
_LEFT_ALONE = ("num_replicas", "placement", "storage", "description", "metadata")
_UNAVAILABLE_CODES = (500, 503)


class ApiError(msgspec.Struct, frozen=True, kw_only=True):
    """What NATS answers when it did not do what was asked."""

    code: int
    err_code: int = 0
    description: str = ""


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    last_seq: int = 0


class ApiAnswer(msgspec.Struct, frozen=True, kw_only=True):
    error: ApiError | None = None
    config: dict[str, Any] = {}
    created: str = ""
    state: StreamState = StreamState()


def bucket_stream(bucket: str) -> str:
    return f"KV_{bucket}"


def bucket_subject(bucket: str, key: str) -> str:
    return f"$KV.{bucket}.{key}"


def changed_subject(bucket: str, key: str) -> str:
    """Where the server tells, after each write, that it was done."""
    return f"kybernate.changed.{bucket}.{key}"


def streams() -> tuple[StreamConfig, ...]:
    return (_jobs_stream(), _events_stream(), *(_bucket(name) for name in BUCKETS))


def _jobs_stream() -> StreamConfig:
    return StreamConfig(
        name=JOBS_STREAM,
        subjects=[JOB_SUBJECTS],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_age=_JOBS_MAX_AGE_SECONDS,
        max_bytes=_STREAM_MAX_BYTES,
        max_msg_size=MAX_MESSAGE_BYTES + _HEADER_ROOM_BYTES,
        duplicate_window=_DUPLICATE_WINDOW_SECONDS,
    )


def _events_stream() -> StreamConfig:
    return StreamConfig(
        name=EVENTS_STREAM,
        subjects=[EVENT_SUBJECTS],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        max_age=_EVENTS_MAX_AGE_SECONDS,
        max_bytes=_STREAM_MAX_BYTES,
        max_msg_size=MAX_MESSAGE_BYTES + _HEADER_ROOM_BYTES,
        duplicate_window=_DUPLICATE_WINDOW_SECONDS,
    )


def _bucket(name: str) -> StreamConfig:
    """A NATS key-value bucket, as `nats kv` knows it, that tells every write once it is done."""
    return StreamConfig(
        name=bucket_stream(name),
        subjects=[bucket_subject(name, ">")],
        max_msgs_per_subject=1,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        deny_delete=True,
        allow_rollup_hdrs=True,
        allow_direct=True,
        max_msg_size=MAX_MESSAGE_BYTES + _HEADER_ROOM_BYTES,
        republish=RePublish(
            src=bucket_subject(name, ">"), dest=changed_subject(name, ">"), headers_only=True
        ),
    )


def controllers_consumer(ack_wait: float) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=CONTROLLERS,
        name=CONTROLLERS,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait,
        max_deliver=-1,
        max_ack_pending=_EVENTS_IN_FLIGHT,
    )


def node_consumer(node: str, ack_wait: float) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=worker_consumer(node),
        name=worker_consumer(node),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait,
        max_deliver=-1,
        filter_subject=job_subjects_of(node),
    )


async def ensure_topology(link: Link, *, ack_wait: float) -> None:
    for config in streams():
        await ensure_stream(link, config)
    await ensure_consumer(link, EVENTS_STREAM, controllers_consumer(ack_wait))


async def ensure_stream(link: Link, config: StreamConfig) -> None:
    wanted = config.as_dict()
    answer = await _ask(link, f"STREAM.CREATE.{config.name}", wanted)
    if answer.error is not None and answer.error.err_code == _OTHER_CONFIGURATION:
        await _repair_stream(link, str(config.name), wanted)
    elif answer.error is not None:
        raise api_problem(f"make stream {config.name}", answer.error)


async def _repair_stream(link: Link, name: str, wanted: dict[str, Any]) -> None:
    info = await _ask(link, f"STREAM.INFO.{name}", {})
    ours = {key: value for key, value in wanted.items() if key not in _LEFT_ALONE}
    if all(info.config.get(key) == value for key, value in ours.items()):
        return
    answer = await _ask(link, f"STREAM.UPDATE.{name}", info.config | ours)
    if answer.error is not None:
        raise api_problem(f"repair stream {name}", answer.error)


async def ensure_consumer(link: Link, stream: str, config: ConsumerConfig) -> None:
    subject = f"CONSUMER.CREATE.{stream}.{config.name}"
    if config.filter_subject:
        subject = f"{subject}.{config.filter_subject}"
    request = {"stream_name": stream, "config": config.as_dict()}
    answer = await _ask(link, subject, request)
    if answer.error is not None:
        raise api_problem(f"make consumer {config.name}", answer.error)


async def end_of(link: Link, stream: str) -> Mark:
    """How far the stream is, and when it was made: by that one is told from another of its name."""
    info = await _ask(link, f"STREAM.INFO.{stream}", {})
    if info.error is not None:
        raise api_problem(f"look at stream {stream}", info.error)
    return Mark(made=info.created, revision=info.state.last_seq)


async def _ask(link: Link, call: str, body: dict[str, Any]) -> ApiAnswer:
    reply = await link.request(f"$JS.API.{call}", msgspec.json.encode(body))
    if not reply.data:
        raise BusUnavailable("NATS answers without JetStream: start it with JetStream enabled")
    return decoder(ApiAnswer).decode(reply.data)


def api_problem(doing: str, error: ApiError) -> BusProblem:
    said = f"NATS did not {doing}: {error.description} (error {error.err_code})"
    if error.err_code == _STREAM_NOT_FOUND:
        return TopologyMissing(said)
    if error.code in _UNAVAILABLE_CODES:
        return BusUnavailable(said)
    return BusProblem(said)
