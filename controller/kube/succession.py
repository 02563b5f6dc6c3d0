"""Which checkpoint goes to which new pod of a Deployment, StatefulSet or Job. Pure.

A checkpoint whose pod was ended with it waits for one heir: the next new pod of the same owner, in
a StatefulSet the next of the same name, in an Indexed Job of the same index. It is promised when
the pod is admitted and inherited when a container of the pod has run. Until then a promise falls
back when its pod ends, or was never made:

    nobody's ──▶ promised ──▶ inherited
        ▲            │
        └────────────┘

Whether a pod was made is not known as long as its request may be under way. Another new pod of the
owner is told to come again then, as it would lose what it may inherit a moment later.
"""

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Any, Final

import msgspec

from controller.kube import pods
from controller.kube.conditions import seconds
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.kubernetes import ADMISSION_ANNOTATION, RESTORE_FROM_ANNOTATION
from schemas.orders import CheckpointOrder, Order, Place
from schemas.pods import Owner, PodRecord

Json = dict[str, Any]

SERVED: Final = frozenset({"ReplicaSet", "StatefulSet", "Job"})
REQUEST_SECONDS: Final = 75.0
"""No request to make a pod takes longer: an API server gives them a minute."""


class Newcomer(msgspec.Struct, frozen=True, kw_only=True):
    """A pod that is to be made, and that may go on for another one."""

    request: str
    namespace: str
    owner: Owner
    name: str = ""
    """Empty where the API server chooses it."""


class Inherit(msgspec.Struct, frozen=True, kw_only=True):
    """It resumes from this checkpoint."""

    entry: CatalogueEntry


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """It starts from its image."""

    warning: str = ""


class ComeAgain(msgspec.Struct, frozen=True, kw_only=True):
    """It is not known yet."""

    message: str


Decision = Inherit | Start | ComeAgain


class _Promise(Enum):
    MINE = auto()
    NEVER_MADE = auto()
    FALLEN_BACK = auto()
    UNDER_WAY = auto()
    KEPT = auto()


def newcomer(request: str, namespace: str, pod: Json) -> Newcomer | Start:
    """Who asks; or why a pod with the label does not."""
    if RESTORE_FROM_ANNOTATION in pod["metadata"].get("annotations", {}):
        return Start()
    owner = pods.owner(pod)
    if owner is None or owner.kind not in SERVED:
        of = f"of a {owner.kind}" if owner else "that nothing owns"
        return Start(
            warning=f"pods {of} do not resume by themselves; those of a Deployment, StatefulSet "
            f"or Job do: annotate the pod with {RESTORE_FROM_ANNOTATION} to choose a checkpoint"
        )
    name = pod["metadata"].get("name", "") if owner.kind == "StatefulSet" else ""
    return Newcomer(request=request, namespace=namespace, owner=owner, name=name)


def decide(
    new: Newcomer,
    entries: Iterable[CatalogueEntry],
    labelled: Sequence[Json],
    now: float,
    *,
    coming: bool = False,
) -> Decision:
    """`labelled`: the namespace's pods with the label, read after the entries. `coming`: one that
    may be this pod's is still being made, as of before that.
    """
    decision = _chosen(new, _meant(new, entries), labelled, now)
    if coming and isinstance(decision, Start):
        return ComeAgain(
            message=f"a pod of {new.owner.kind} {new.owner.name} is gone whose checkpoint is still "
            "being made; ask again in a moment"
        )
    return decision


def leaving(new: Newcomer, order: Order) -> PodRecord | None:
    """The pod whose checkpoint is being made for one like this."""
    if not isinstance(order, CheckpointOrder) or order.leave_running or order.pod is None:
        return None
    return order.pod if _is_meant(new, order.pod) else None


def promised(new: Newcomer, entries: Iterable[CatalogueEntry]) -> bool:
    """Whether pods have to be looked at for a decision."""
    heirs = [entry.heir for entry in _meant(new, entries)]
    if any(heir is None or heir.claim == new.request for heir in heirs):
        return False
    return any(heir is not None and not heir.started for heir in heirs)


def missed(
    pod: Json, entries: Sequence[CatalogueEntry], labelled: Sequence[Json], now: float
) -> CatalogueEntry | ComeAgain | None:
    """What a pod should have inherited that was made while nobody could be asked."""
    metadata = pod["metadata"]
    new = newcomer(metadata["uid"], metadata["namespace"], pod)
    if isinstance(new, Start) or ADMISSION_ANNOTATION in metadata.get("annotations", {}):
        return None
    if any(entry.heir and entry.heir.claim == new.request for entry in entries):
        return None
    made = seconds(metadata["creationTimestamp"]) + 1  # it is told in whole seconds
    earlier = [entry for entry in _meant(new, entries) if entry.facts.created < made]
    match _chosen(new, earlier, labelled, now):
        case Inherit(entry=entry):
            return entry
        case ComeAgain() as later:
            return later
        case Start():
            return None


def _meant(new: Newcomer, entries: Iterable[CatalogueEntry]) -> list[CatalogueEntry]:
    """What was left for pods like this one, newest first; only the last where one runs."""
    found = [
        entry
        for entry in entries
        if entry.facts.pod is not None
        and _is_meant(new, entry.facts.pod)
        and entry.state is CheckpointState.READY
        and entry.facts.place == Place.DISK
        and not entry.facts.left_running
    ]
    found.sort(key=lambda entry: entry.facts.created, reverse=True)
    return found[:1] if new.name or new.owner.index else found


def _is_meant(new: Newcomer, left: PodRecord) -> bool:
    same = (left.namespace, left.owner) == (new.namespace, new.owner)
    return same and (not new.name or left.name == new.name)


def _chosen(
    new: Newcomer, meant: Sequence[CatalogueEntry], labelled: Sequence[Json], now: float
) -> Decision:
    promises = [(entry, _promise(entry, new, labelled, now)) for entry in meant]
    for wanted in (_Promise.MINE, _Promise.NEVER_MADE, _Promise.FALLEN_BACK):
        for entry, promise in promises:
            if promise is wanted:
                return Inherit(entry=entry)
    if any(promise is _Promise.UNDER_WAY for _, promise in promises):
        return ComeAgain(
            message=f"a checkpoint of {new.owner.kind} {new.owner.name} is promised to another new "
            "pod that is not there yet; ask again in a moment"
        )
    return Start()


def _promise(
    entry: CatalogueEntry, new: Newcomer, labelled: Sequence[Json], now: float
) -> _Promise:
    heir = entry.heir
    if heir is None:
        return _Promise.NEVER_MADE
    if heir.claim == new.request:
        return _Promise.MINE
    if heir.started:
        return _Promise.KEPT
    for pod in labelled:
        if pod["metadata"].get("annotations", {}).get(ADMISSION_ANNOTATION) == heir.claim:
            ended_first = pods.over(pod) and not pods.began(pod)
            return _Promise.FALLEN_BACK if ended_first else _Promise.KEPT
    if new.name or heir.pod or now - heir.since > REQUEST_SECONDS:
        return _Promise.FALLEN_BACK  # of one name there is no second pod; one that was seen is gone
    return _Promise.UNDER_WAY
