"""FastStream's side: the same streams, records and acknowledgements, written as its users write.

Streams and bucket have Kybernate's configuration. Handlers take raw messages and decode them with
msgspec (validation by pydantic would only slow this side down), and messages are fetched in
batches and handled at once. The worker's record is a SQLite file like Kybernate's: written ahead,
synchronous NORMAL.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec
from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.js.api import RetentionPolicy
from nats.js.kv import KeyValue

from bench.jobs_side import NODE, Side
from kybernate.bus import BusSettings
from kybernate.bus.nats import connect
from schemas.actions import Action, ActionState
from schemas.base import decode, encode
from schemas.messages import EventKind, Job, JobEvent, Restored
from schemas.names import (
    ACTIONS_BUCKET,
    CONTROLLERS,
    EVENTS_STREAM,
    JOBS_STREAM,
    event_subject,
    job_subject,
    job_subjects_of,
    worker_consumer,
)
from schemas.orders import RestoreOrder

WORKER_BATCH = 128
CONTROLLER_BATCH = 256
"""As many as Kybernate fetches."""


class DiskRecord:
    """What the worker knows of its jobs."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, body BLOB, terminal BLOB)")

    def accept(self, job: str, body: bytes) -> None:
        self._db.execute("INSERT OR IGNORE INTO jobs (id, body) VALUES (?, ?)", (job, body))

    def end(self, job: str, event: bytes) -> None:
        self._db.execute("UPDATE jobs SET terminal = ? WHERE id = ?", (event, job))

    def close(self) -> None:
        self._db.close()


class FastStreamSide:
    """Controller and worker on one broker."""

    def __init__(self, broker: NatsBroker, disk: DiskRecord) -> None:
        self._broker = broker
        self._disk = disk
        self._actions: KeyValue | None = None
        self._rows: dict[str, tuple[Action, int]] = {}
        self._watches: dict[str, asyncio.Future[None]] = {}
        self._subscribe()

    def _subscribe(self) -> None:
        jobs = self._broker.subscriber(
            job_subjects_of(NODE),
            stream=JStream(JOBS_STREAM, declare=False, retention=RetentionPolicy.WORK_QUEUE),
            durable=worker_consumer(NODE),
            pull_sub=PullSub(batch_size=WORKER_BATCH, timeout=0.1),
            ack_policy=AckPolicy.MANUAL,
        )
        events = self._broker.subscriber(
            "kybernate.event.>",
            stream=JStream(EVENTS_STREAM, declare=False),
            durable=CONTROLLERS,
            pull_sub=PullSub(batch_size=CONTROLLER_BATCH, timeout=0.1),
            ack_policy=AckPolicy.MANUAL,
        )
        jobs(self.on_job)
        events(self.on_event)

    async def start(self) -> None:
        await self._broker.start()
        self._actions = await self._broker.key_value(ACTIONS_BUCKET, declare=False)

    @property
    def actions(self) -> KeyValue:
        if self._actions is None:
            raise RuntimeError("start comes first")
        return self._actions

    async def complete(self, action: Action) -> None:
        ended = self._watches[action.id] = asyncio.get_running_loop().create_future()
        revision = await self.actions.create(action.id, encode(action))
        self._rows[action.id] = (action, revision)
        job = Job(
            action=action.id, attempt=1, node=NODE, order=action.order, deadline=action.deadline
        )
        await self._publish(job_subject(NODE, "restore"), JOBS_STREAM, encode(job), job.id)
        await ended

    async def on_job(self, message: NatsMessage) -> None:
        job = decode(message.body, Job)
        self._disk.accept(job.id, message.body)
        event = encode(_completed(job))
        self._disk.end(job.id, event)
        await self._publish(event_subject(NODE, "completed"), EVENTS_STREAM, event, f"{job.id}.1")
        await message.ack_sync()

    async def on_event(self, message: NatsMessage) -> None:
        event = decode(message.body, JobEvent)
        action, revision = self._rows[event.action]
        ended = msgspec.structs.replace(
            action, state=ActionState.COMPLETED, updated=time.time(), result=event.result
        )
        revision = await self.actions.update(action.id, encode(ended), last=revision)
        self._rows[action.id] = (ended, revision)
        self._watches.pop(action.id).set_result(None)
        await message.ack_sync()

    async def _publish(self, subject: str, stream: str, body: bytes, dedupe: str) -> None:
        headers = {"Nats-Msg-Id": dedupe}
        await self._broker.publish(body, subject, stream=stream, headers=headers, timeout=5.0)


async def whole(message: NatsMessage) -> NatsMessage:
    """Leaves decoding to the handlers."""
    return message


def _completed(job: Job) -> JobEvent:
    if not isinstance(job.order, RestoreOrder):
        raise TypeError(f"this comparison has restore orders only, not {job.order}")
    return JobEvent(
        action=job.action,
        attempt=job.attempt,
        sequence=1,
        node=job.node,
        kind=EventKind.COMPLETED,
        at=time.time(),
        result=Restored(target=job.order.target, pid=1, checkpoint=job.order.checkpoint),
    )


@asynccontextmanager
async def through_faststream(url: str, folder: Path) -> AsyncIterator[Side]:
    async with connect(BusSettings(servers=(url,)), name="setup") as bus:
        await bus.ensure_topology()
        await bus.ensure_queue(NODE)
    with closing(DiskRecord(folder / "jobs.db")) as disk:
        broker = NatsBroker(url, logger=None, apply_types=False, decoder=whole)
        side = FastStreamSide(broker, disk)
        await side.start()
        try:
            yield side
        finally:
            await broker.stop()
