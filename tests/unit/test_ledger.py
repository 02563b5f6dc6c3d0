from collections.abc import Iterator
from pathlib import Path

import pytest

from node_worker.ledger import Ledger, LedgerUnusable, Verdict
from node_worker.plan import History, Phase
from schemas.failures import Failure
from schemas.messages import EventKind, Job, JobEvent
from schemas.orders import DeleteOrder

ACTION = "00000000-0000-4000-8000-000000000001"
CHECKPOINT = "00000000-0000-4000-8000-00000000000c"


def job(attempt: int = 1, action: str = ACTION) -> Job:
    order = DeleteOrder(checkpoint=CHECKPOINT)
    return Job(action=action, attempt=attempt, node="n", order=order, deadline=99.0)


def last(of: Job, note: str = "", at: float = 5.0) -> JobEvent:
    return JobEvent(
        action=of.action,
        attempt=of.attempt,
        sequence=7,
        node="n",
        kind=EventKind.COMPLETED,
        at=at,
        note=note,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path)
    yield ledger
    ledger.close()


def reopened(ledger: Ledger, path: Path) -> Ledger:
    ledger.close()
    return Ledger(path)


def test_a_job_is_new_once_then_known(ledger: Ledger, path: Path) -> None:
    assert ledger.accept([(job(), "trace")], 1.0) == [Verdict.NEW]
    assert ledger.accept([(job(), "other")], 2.0) == [Verdict.KNOWN]
    again = reopened(ledger, path)
    assert again.accept([(job(), "")], 3.0) == [Verdict.KNOWN]
    assert [(left.job, left.traceparent) for left in again.unsettled()] == [(job(), "trace")]
    again.close()


def test_an_earlier_attempt_is_stale(ledger: Ledger) -> None:
    verdicts = ledger.accept([(job(2), ""), (job(1), ""), (job(3), "")], 1.0)
    assert verdicts == [Verdict.NEW, Verdict.STALE, Verdict.NEW]
    other = job(1, action="00000000-0000-4000-8000-000000000002")
    assert ledger.accept([(other, "")], 1.0) == [Verdict.NEW]


def test_the_same_job_twice_in_one_batch(ledger: Ledger) -> None:
    assert ledger.accept([(job(), ""), (job(), "")], 1.0) == [Verdict.NEW, Verdict.KNOWN]


def test_remembers_steps_and_notes_over_a_restart(ledger: Ledger, path: Path) -> None:
    ledger.accept([(job(), "")], 1.0)
    ledger.step(job().id, "lock", Phase.DOING)
    ledger.step(job().id, "lock", Phase.DONE, b"pids")
    ledger.step(job().id, "dump", Phase.DOING)
    again = reopened(ledger, path)
    phases = {"lock": Phase.DONE, "dump": Phase.DOING}
    assert again.history(job().id) == History(phases=phases)
    assert again.notes(job().id) == b"pids"
    again.close()


def test_the_first_reason_to_turn_back_stands(ledger: Ledger) -> None:
    ledger.accept([(job(), "")], 1.0)
    first = Failure(reason="DumpFailed", message="first")
    ledger.turn_back(job().id, first)
    ledger.turn_back(job().id, Failure(reason="WorkerRestarted", message="second"))
    assert ledger.failure(job().id) == first
    assert ledger.history(job().id).turned_back


def test_counts_the_runs_of_a_job(ledger: Ledger, path: Path) -> None:
    ledger.accept([(job(), "")], 1.0)
    assert ledger.take_up(job().id) == 1
    again = reopened(ledger, path)
    assert again.take_up(job().id) == 2
    again.close()


def test_the_last_event_waits_until_it_was_told_and_can_be_repeated(ledger: Ledger) -> None:
    ledger.accept([(job(), "")], 1.0)
    ledger.end(job().id, last(job()), settled=True)
    assert ledger.untold(10) == [(job().id, last(job()))]
    ledger.told([job().id])
    assert ledger.untold(10) == []
    ledger.repeat(job().id)
    assert ledger.untold(10) == [(job().id, last(job()))]


def test_the_first_last_event_stands(ledger: Ledger) -> None:
    ledger.accept([(job(), "")], 1.0)
    ledger.end(job().id, last(job(), note="first"), settled=False)
    assert [left.told_end for left in ledger.unsettled()] == [True]
    ledger.end(job().id, last(job(), note="second"), settled=True)
    assert ledger.untold(10) == [(job().id, last(job(), note="first"))]
    assert ledger.unsettled() == []


def test_forgets_what_ended_long_ago_and_nothing_that_is_open(ledger: Ledger) -> None:
    old, untold, unsettled = (job(n, action=f"{n}{ACTION[1:]}") for n in (1, 2, 3))
    ledger.accept([(old, ""), (untold, ""), (unsettled, "")], 1.0)
    ledger.step(old.id, "lock", Phase.DONE)
    for done in (old, untold, unsettled):
        ledger.end(done.id, last(done), settled=done is not unsettled)
    ledger.told([old.id, unsettled.id])
    ledger.prune(6.0)
    assert ledger.history(old.id) == History()
    assert ledger.accept([(old, ""), (untold, ""), (unsettled, "")], 9.0) == [
        Verdict.NEW,
        Verdict.KNOWN,
        Verdict.KNOWN,
    ]


def test_keeps_containers_that_wait_in_memory(ledger: Ledger, path: Path) -> None:
    ledger.keep_sleeper(CHECKPOINT, b"body")
    again = reopened(ledger, path)
    assert again.sleeper(CHECKPOINT) == b"body"
    assert again.sleepers() == [b"body"]
    again.forget_sleeper(CHECKPOINT)
    assert again.sleeper(CHECKPOINT) is None
    again.close()


def test_is_readable_by_its_owner_only(ledger: Ledger, path: Path) -> None:
    assert ledger.untold(1) == []
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_file_that_is_no_ledger_is_refused_with_advice(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database at all" * 40)
    with pytest.raises(LedgerUnusable, match="move the file away"):
        Ledger(path)


def test_a_ledger_of_another_layout_is_refused(ledger: Ledger, path: Path) -> None:
    ledger._db.execute("PRAGMA user_version = 99")
    ledger.close()
    with pytest.raises(LedgerUnusable, match="layout 99"):
        Ledger(path)
