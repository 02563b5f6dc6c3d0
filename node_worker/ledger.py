"""What the worker has written down about its jobs, so that it can be killed at any moment.

One SQLite file in the worker's state folder, written ahead (WAL) without an fsync for each
transaction: it survives the death of the process at any instruction. Losing the machine's power
may lose the last moments, but then every container is gone as well, and what is durable (the
checkpoints) speaks for itself on the disk.

Calls are direct: a transaction takes tens of microseconds, less than handing it to a thread.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from node_worker.plan import History, Phase
from schemas.base import Record, decode, encode
from schemas.failures import Failure
from schemas.messages import Job, JobEvent

LAYOUT = 1
_CHECKPOINT_PAGES = 8000
"""Moving what was written ahead to its place costs an fsync: 32 MiB at a time."""

_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    action TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    body BLOB NOT NULL,
    accepted REAL NOT NULL,
    traceparent TEXT NOT NULL,
    runs INTEGER NOT NULL DEFAULT 0,    -- how many worker processes took it up
    notes BLOB,                         -- what its steps need to know of each other
    failure BLOB,                       -- why it turned back
    terminal BLOB,                      -- its last event
    told INTEGER NOT NULL DEFAULT 0,    -- the server has that event
    settled INTEGER NOT NULL DEFAULT 0, -- nothing of it is left to do or to undo
    ended REAL
) WITHOUT ROWID;
CREATE INDEX jobs_by_action ON jobs (action, attempt);
CREATE INDEX jobs_open ON jobs (accepted) WHERE NOT (settled AND told);
CREATE TABLE steps (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    step TEXT NOT NULL,
    phase TEXT NOT NULL,
    PRIMARY KEY (job, step)
) WITHOUT ROWID;
CREATE TABLE sleepers (checkpoint TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
"""


class LedgerUnusable(Exception):
    """The worker's ledger cannot be read; it must not be guessed at."""


class Verdict(StrEnum):
    NEW = "new"
    KNOWN = "known"
    STALE = "stale"
    """A later attempt of its action was seen before."""


class OpenJob(Record, frozen=True, kw_only=True):
    """A job with something left to do, as an earlier run of the worker left it."""

    job: Job
    traceparent: str
    told_end: bool
    """Its last event is written already; what is left is done quietly."""


class Ledger:
    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._prepare()
        except sqlite3.DatabaseError as error:
            raise LedgerUnusable(
                f"{path} is not a usable ledger ({error}); see that no container is left paused "
                "or locked, then move the file away and start the worker again"
            ) from error

    def close(self) -> None:
        self._db.close()

    def accept(
        self, jobs: Sequence[tuple[Job, str]], now: float, *, taken_up: bool = False
    ) -> list[Verdict]:
        """Write down new jobs, each with its trace parent, and tell of each whether it is new.

        `taken_up`: this process works on the new ones from now on, as `take_up` would say.
        """
        with self._transaction() as db:
            return [self._accept(db, job, parent, now, int(taken_up)) for job, parent in jobs]

    def take_up(self, job: str) -> int:
        """Count that a process works on it now: 1 for the first."""
        row = self._db.execute(
            "UPDATE jobs SET runs = runs + 1 WHERE id = ? RETURNING runs", (job,)
        ).fetchone()
        return int(row[0])

    def step(self, job: str, step: str, phase: Phase, notes: bytes | None = None) -> None:
        """Write down where a step stands and, with it, what it found out."""
        into_steps = "INSERT OR REPLACE INTO steps VALUES (?, ?, ?)"
        if notes is None:
            self._db.execute(into_steps, (job, step, phase))
            return
        with self._transaction() as db:
            db.execute(into_steps, (job, step, phase))
            db.execute("UPDATE jobs SET notes = ? WHERE id = ?", (notes, job))

    def turn_back(self, job: str, failure: Failure) -> None:
        """Write down that it will not go on. The first reason stands."""
        self._db.execute(
            "UPDATE jobs SET failure = ? WHERE id = ? AND failure IS NULL", (encode(failure), job)
        )

    def history(self, job: str) -> History:
        phases = self._db.execute("SELECT step, phase FROM steps WHERE job = ?", (job,))
        return History(
            phases={step: Phase(phase) for step, phase in phases},
            turned_back=self.failure(job) is not None,
        )

    def notes(self, job: str) -> bytes | None:
        raw: bytes | None = self._cell("notes", job)
        return raw

    def failure(self, job: str) -> Failure | None:
        raw = self._cell("failure", job)
        return None if raw is None else decode(raw, Failure)

    def end(self, job: str, event: JobEvent, *, settled: bool) -> None:
        """Write down the job's last event, to be told until the server has it.

        The first one stands: what was told once is never taken back.
        """
        self._db.execute(
            "UPDATE jobs SET terminal = coalesce(terminal, ?), ended = coalesce(ended, ?), "
            "settled = ? WHERE id = ?",
            (encode(event), event.at, settled, job),
        )

    def ended(self, job: str) -> bool:
        return self._cell("terminal", job) is not None

    def repeat(self, job: str) -> None:
        """Tell the job's last event once more."""
        self._db.execute("UPDATE jobs SET told = 0 WHERE id = ? AND terminal IS NOT NULL", (job,))

    def untold(self, limit: int) -> list[tuple[str, JobEvent]]:
        rows = self._db.execute(
            "SELECT id, terminal FROM jobs "
            "WHERE NOT (settled AND told) AND terminal IS NOT NULL AND NOT told "
            "ORDER BY accepted LIMIT ?",
            (limit,),
        ).fetchall()
        return [(job, decode(raw, JobEvent)) for job, raw in rows]

    def told(self, jobs: Iterable[str]) -> None:
        with self._transaction() as db:
            db.executemany("UPDATE jobs SET told = 1 WHERE id = ?", [(job,) for job in jobs])

    def unsettled(self) -> list[OpenJob]:
        """Jobs that earlier runs, or undos that failed, have left, oldest first."""
        rows = self._db.execute(
            "SELECT body, traceparent, terminal IS NOT NULL FROM jobs "
            "WHERE NOT (settled AND told) AND NOT settled ORDER BY accepted"
        ).fetchall()
        return [
            OpenJob(job=decode(body, Job), traceparent=parent, told_end=bool(ended))
            for body, parent, ended in rows
        ]

    def prune(self, before: float) -> None:
        """Forget jobs that ended earlier than that."""
        self._db.execute("DELETE FROM jobs WHERE settled AND told AND ended < ?", (before,))

    def keep_sleeper(self, checkpoint: str, body: bytes) -> None:
        """Write down a container whose state waits in memory."""
        self._db.execute("INSERT OR REPLACE INTO sleepers VALUES (?, ?)", (checkpoint, body))

    def sleeper(self, checkpoint: str) -> bytes | None:
        row = self._db.execute(
            "SELECT body FROM sleepers WHERE checkpoint = ?", (checkpoint,)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def sleepers(self) -> list[bytes]:
        return [bytes(row[0]) for row in self._db.execute("SELECT body FROM sleepers")]

    def forget_sleeper(self, checkpoint: str) -> None:
        self._db.execute("DELETE FROM sleepers WHERE checkpoint = ?", (checkpoint,))

    def _prepare(self) -> None:
        self._db.execute("PRAGMA busy_timeout = 5000")
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")  # one worker per state folder
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        self._db.execute("PRAGMA foreign_keys = ON")
        layout = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if layout == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {LAYOUT}; COMMIT;")
        elif layout != LAYOUT:
            raise LedgerUnusable(
                f"{self._path} has layout {layout}, this worker knows {LAYOUT}: "
                "start the worker's version that wrote it, or move the file away"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _accept(
        self, db: sqlite3.Connection, job: Job, traceparent: str, now: float, runs: int
    ) -> Verdict:
        latest = db.execute(
            "SELECT max(attempt) FROM jobs WHERE action = ?", (job.action,)
        ).fetchone()[0]
        if latest is not None and latest > job.attempt:
            return Verdict.STALE
        added = db.execute(
            "INSERT OR IGNORE INTO jobs (id, action, attempt, body, accepted, traceparent, runs) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (job.id, job.action, job.attempt, encode(job), now, traceparent, runs),
        ).rowcount
        return Verdict.NEW if added else Verdict.KNOWN

    def _cell(self, column: str, job: str) -> bytes | None:
        row = self._db.execute(
            f"SELECT {column} FROM jobs WHERE id = ?",  # noqa: S608 - a column of our own
            (job,),
        ).fetchone()
        return None if row is None else row[0]
