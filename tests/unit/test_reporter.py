"""How events of a job are bundled into one message, and wait while nobody takes them."""

from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from kybernate.bus import BusUnavailable
from kybernate.bus.memory import MemoryBroker
from node_worker.ledger import Ledger
from node_worker.reporter import Reporter, bundled
from schemas.base import decode
from schemas.messages import EventKind, Job, JobEvent
from schemas.orders import DeleteOrder


def event(kind: EventKind, sequence: int, *, step: str = "", action: str = "a") -> JobEvent:
    return JobEvent(
        action=action, attempt=1, sequence=sequence, node="n", kind=kind, at=1.0, step=step
    )


def test_the_last_event_of_a_job_takes_the_earlier_ones_along() -> None:
    steps = [
        event(EventKind.ACCEPTED, 0),
        event(EventKind.STEP_STARTED, 1, step="dump"),
        event(EventKind.STEP_DONE, 2, step="dump"),
        event(EventKind.STEP_STARTED, 3, step="seal"),
    ]
    [bundle] = bundled(steps)
    assert bundle.one_by_one() == tuple(steps)
    assert bundle.sequence == 3


def test_jobs_are_bundled_apart() -> None:
    bundles = bundled([event(EventKind.ACCEPTED, 0, action=action) for action in "abab"])
    assert [bundle.action for bundle in bundles] == ["a", "b"]


def test_an_ended_job_tells_what_its_steps_took_and_nothing_that_has_passed() -> None:
    done = event(EventKind.STEP_DONE, 2, step="dump")
    end = event(EventKind.COMPLETED, 3)
    passed = [event(kind, 1, step="dump") for kind in (EventKind.ACCEPTED, EventKind.PROGRESS)]
    [bundle] = bundled([*passed, done, end])
    assert bundle.one_by_one() == (done, end)


def test_what_a_reader_should_know_is_told_though_the_job_has_ended() -> None:
    remark = msgspec.structs.replace(event(EventKind.PROGRESS, 1, step="retire"), note="so it is")
    end = event(EventKind.COMPLETED, 2)
    [bundle] = bundled([event(EventKind.PROGRESS, 0, step="retire"), remark, end])
    assert bundle.one_by_one() == (remark, end)


def test_of_progress_only_the_newest_counts() -> None:
    progress = [event(EventKind.PROGRESS, number, step="dump") for number in range(1000)]
    assert bundled(progress) == progress[-1:]


def test_a_single_event_goes_as_it_is() -> None:
    accepted = event(EventKind.ACCEPTED, 0)
    assert bundled([accepted]) == [accepted]


async def test_steps_that_the_server_did_not_take_are_told_later(tmp_path: Path) -> None:
    broker = MemoryBroker()
    bus = broker.bus()
    await bus.ensure_topology()
    order = DeleteOrder(checkpoint="3d1f9c54-6a51-4b6e-9d54-0c1f6f1f2a10")
    job = Job(action="a", attempt=1, node="n", order=order, deadline=1.0)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        reporter = Reporter(bus, "n", ledger)
        listener = reporter.listener(job, 1)
        listener.done("dump", 1.0)
        broker.disconnect()
        with pytest.raises(BusUnavailable):
            await reporter.publish()
        listener.done("seal", 1.0)
        broker.reconnect()
        await reporter.publish()
    [delivery] = await bus.events().fetch(9, wait=5)
    told = decode(delivery.data, JobEvent).one_by_one()
    assert [event.step for event in told] == ["dump", "seal"]
