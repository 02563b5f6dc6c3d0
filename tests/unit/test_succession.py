"""Which checkpoint goes to which new pod, and that never two get the same one."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.kube import pods, succession
from controller.kube.succession import REQUEST_SECONDS, ComeAgain, Inherit, Newcomer, Start
from schemas.checkpoints import CatalogueEntry, CheckpointState, Heir
from schemas.kubernetes import ADMISSION_ANNOTATION, RESTORE_FROM_ANNOTATION
from schemas.pods import Owner
from tests.support.owned_pods import (
    JOB,
    NAMESPACE,
    SET,
    STATEFUL,
    left,
    pod_of,
    promised_pod,
    running,
)

NOW = 2000.0
DAEMONS = Owner(kind="DaemonSet", name="agent", uid="dae")


def asking(owner: Owner = SET, *, request: str = "mine", name: str = "") -> Newcomer:
    new = succession.newcomer(request, NAMESPACE, pod_of(owner, name))
    assert isinstance(new, Newcomer)
    return new


def decided(
    *entries: CatalogueEntry, by: Newcomer | None = None, labelled: Any = (), now: float = NOW
) -> str:
    """The checkpoint that is inherited, or what happens instead."""
    match succession.decide(by or asking(), entries, labelled, now):
        case Inherit(entry=entry):
            return entry.facts.id
        case other:
            return type(other).__name__


def test_the_next_pod_of_the_owner_inherits() -> None:
    assert decided(left("one", SET)) == "one"
    assert decided() == "Start"


@pytest.mark.parametrize(
    "entry",
    [
        left("c", msgspec.structs.replace(SET, uid="of another template")),
        left("c", None),
        left("c", SET, namespace="other"),
        left("c", SET, left_running=True),
        left("c", SET, place="memory"),
        left("c", SET, state=CheckpointState.DELETED),
    ],
)
def test_what_is_not_meant_for_it_is_left_alone(entry: CatalogueEntry) -> None:
    assert decided(entry) == "Start"


def test_replicas_inherit_the_newest_first_and_each_its_own() -> None:
    older, newer = left("older", SET, created=1.0), left("newer", SET, created=2.0)
    taken = msgspec.structs.replace(newer, heir=Heir(claim="other", since=NOW, started=True))

    assert decided(older, newer) == "newer"
    assert decided(older, taken) == "older"


def test_a_stateful_pod_inherits_by_its_name_and_template() -> None:
    entry = left("c", STATEFUL, name="counter-0")

    assert decided(entry, by=asking(STATEFUL, name="counter-0")) == "c"
    assert decided(entry, by=asking(STATEFUL, name="counter-1")) == "Start"
    changed = msgspec.structs.replace(STATEFUL, revision="r2")
    assert decided(entry, by=asking(changed, name="counter-0")) == "Start"


def test_nobody_falls_back_behind_the_last_checkpoint_of_a_name() -> None:
    used = Heir(claim="other", since=1.0, started=True)
    last = left("last", STATEFUL, name="counter-0", created=2.0, heir=used)
    older = left("older", STATEFUL, name="counter-0", created=1.0)

    assert decided(last, older, by=asking(STATEFUL, name="counter-0")) == "Start"


def test_pods_of_an_indexed_job_inherit_by_their_index() -> None:
    first, second = (msgspec.structs.replace(JOB, index=index) for index in "01")

    assert decided(left("c", first), by=asking(second)) == "Start"
    assert decided(left("c", first), by=asking(first)) == "c"


def other_heir(claim: str = "other", pod: str = "", *, started: bool = False) -> Heir:
    return Heir(claim=claim, since=NOW, pod=pod, started=started)


def promised(owner: Owner = SET, **heir: Any) -> CatalogueEntry:
    return left("c", owner, name="counter-0", heir=other_heir(**heir))


def test_the_same_request_gets_the_same_answer() -> None:
    assert decided(promised(claim="mine")) == "c"


def test_what_is_promised_to_a_request_under_way_is_waited_for() -> None:
    assert decided(promised()) == "ComeAgain"
    assert decided(promised(), left("older", SET, created=1.0)) == "older"


def test_a_promise_that_no_pod_took_falls_back() -> None:
    assert decided(promised(), now=NOW + REQUEST_SECONDS + 1) == "c"


def test_of_one_name_there_is_no_second_pod_to_wait_for() -> None:
    assert decided(promised(STATEFUL), by=asking(STATEFUL, name="counter-0")) == "c"


TERMINATED = {"state": {"terminated": {"reason": "Error"}}}
NEVER_STARTED = {"state": {"terminated": {"reason": "StartError"}}}


@pytest.mark.parametrize(
    ("status", "inherited"),
    [
        ({"phase": "Pending"}, "Start"),
        (running(), "Start"),
        ({"phase": "Failed", "containerStatuses": [TERMINATED]}, "Start"),
        ({"phase": "Running", "containerStatuses": [{"lastState": TERMINATED["state"]}]}, "Start"),
        ({"phase": "Failed"}, "c"),
        ({"phase": "Failed", "containerStatuses": [NEVER_STARTED]}, "c"),
    ],
)
def test_a_pod_keeps_its_promise_unless_it_ended_before_it_ran(
    status: dict[str, Any], inherited: str
) -> None:
    """What counts is the pod, however long ago it was asked for."""
    pod = promised_pod("other", **status)

    assert decided(promised(), labelled=[pod], now=NOW + 1000) == inherited


def test_a_pod_that_goes_before_it_ran_leaves_its_promise() -> None:
    pod = promised_pod("other", phase="Pending")
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    assert decided(promised(), labelled=[pod]) == "c"


def test_a_pod_that_was_seen_and_is_gone_leaves_its_promise() -> None:
    assert decided(promised(pod="counter-x")) == "c"


def test_a_pod_that_ran_keeps_it_for_ever() -> None:
    assert decided(promised(started=True), now=NOW + 1e6) == "Start"


def test_pods_are_looked_at_only_for_a_promise() -> None:
    new = asking()

    assert succession.promised(new, [promised()])
    for entry in (left("c", SET), promised(started=True), promised(claim="mine")):
        assert not succession.promised(new, [entry])


@pytest.mark.parametrize(
    ("owner", "warned"), [(None, "nothing owns"), (DAEMONS, "a DaemonSet"), (SET, "")]
)
def test_who_cannot_inherit_is_told(owner: Owner | None, warned: str) -> None:
    new = succession.newcomer("mine", NAMESPACE, pod_of(owner))

    assert isinstance(new, Start) == bool(warned)
    if isinstance(new, Start):
        assert warned in new.warning


def test_a_pod_that_names_its_checkpoint_is_left_alone() -> None:
    pod = pod_of(SET, annotations={RESTORE_FROM_ANNOTATION: "c"})

    assert succession.newcomer("mine", NAMESPACE, pod) == Start()


def late(**metadata: Any) -> Any:
    """A pod that nobody was asked about, made at 1970-01-01 00:33:20."""
    made = {"uid": "late", "namespace": NAMESPACE, "creationTimestamp": "1970-01-01T00:33:20Z"}
    return pod_of(SET, "counter-late", **(made | metadata)) | {"status": running()}


def test_a_pod_made_while_nobody_answered_missed_what_was_there() -> None:
    entry = left("c", SET, created=NOW - 1)

    def missed(pod: Any, *entries: CatalogueEntry, now: float = NOW + 5) -> Any:
        return succession.missed(pod, entries, [], now)

    assert missed(late(), entry) == entry
    assert missed(late(), left("c", SET, created=NOW + 2)) is None
    assert isinstance(missed(late(), promised()), ComeAgain)
    assert missed(late(), promised(), now=NOW + REQUEST_SECONDS + 1) == promised()
    assert missed(late(), promised(started=True)) is None
    assert missed(late(annotations={ADMISSION_ANNOTATION: "seen"}), entry) is None
    used = promised(claim="late", started=True)
    assert missed(late(), used, entry) is None


class House:
    """An owner whose pods come and go, with requests that are lost on the way."""

    def __init__(self, checkpoints: int) -> None:
        self.entries = {
            f"c{number}": left(f"c{number}", SET, created=float(number))
            for number in range(checkpoints)
        }
        self.pods: dict[str, dict[str, Any]] = {}
        self.under_way: dict[str, str] = {}
        self.resumed: list[str] = []
        self.now = NOW

    def ask(self, request: str) -> None:
        decision = succession.decide(
            asking(request=request), self.entries.values(), list(self.pods.values()), self.now
        )
        if isinstance(decision, Inherit):
            heir = Heir(claim=request, since=self.now)
            entry = msgspec.structs.replace(decision.entry, heir=heir)
            self.entries[entry.facts.id] = entry
            self.under_way[request] = entry.facts.id

    def make(self, request: str) -> None:
        if request in self.under_way:
            self.pods[request] = promised_pod(request, phase="Pending")

    def see(self, request: str) -> None:
        if request in self.pods:
            self.note(request, pod="counter-x")

    def note(self, request: str, **what: Any) -> None:
        entry = self.entries[self.under_way[request]]
        if entry.heir and entry.heir.claim == request:
            heir = msgspec.structs.replace(entry.heir, **what)
            self.entries[entry.facts.id] = msgspec.structs.replace(entry, heir=heir)

    def run(self, request: str) -> None:
        if request in self.pods and not pods.over(self.pods[request]):
            if pods.began(self.pods[request]):
                return
            self.pods[request] |= {"status": running()}
            self.resumed.append(self.under_way[request])
            self.note(request, started=True)

    def fail(self, request: str) -> None:
        if request in self.pods:
            self.pods[request]["metadata"]["deletionTimestamp"] = "now"

    def lose(self, request: str) -> None:
        """The request ends without a pod: it can make none later."""
        if request not in self.pods:
            self.under_way.pop(request, None)

    def wait(self, _request: str) -> None:
        """Longer than any request takes."""
        for request in list(self.under_way):
            self.lose(request)
        self.now += REQUEST_SECONDS + 1

    def forget(self, request: str) -> None:
        """A pod that is over is seen no more."""
        if request in self.pods and pods.over(self.pods[request]):
            del self.pods[request]
            self.under_way.pop(request)


EVENTS = st.tuples(
    st.sampled_from(["ask", "make", "run", "fail", "lose", "wait", "forget"]),
    st.sampled_from(["a", "b", "c", "d"]),
)


@given(count=st.integers(1, 3), events=st.lists(EVENTS, max_size=40))
def test_no_checkpoint_is_resumed_twice_whatever_happens(
    count: int, events: list[tuple[str, str]]
) -> None:
    house = House(count)
    asked: set[str] = set()
    for number, (what, request) in enumerate(events):
        if what == "ask":
            request = f"{request}{number}" if request in asked else request  # noqa: PLW2901
            asked.add(request)
        getattr(house, what)(request)

    assert len(set(house.resumed)) == len(house.resumed)
