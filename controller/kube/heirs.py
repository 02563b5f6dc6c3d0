"""New pods of owners come into what evicted ones left: promised at admission, told afterwards.

A promise is a compare-and-set on the checkpoint's row of the catalogue, so any number of
controllers may be asked at once. That a pod has begun to run is written there as well.
"""

import asyncio
from typing import Final

import msgspec

from controller.kube import admission, conditions, pods, succession
from controller.kube.admission import AdmissionRequest
from controller.kube.client import NODES, PODS, Json
from controller.kube.fresh import Fresh
from controller.kube.means import Means
from controller.kube.succession import ComeAgain, Decision, Inherit, Newcomer, Start
from controller.kube.watch import Informer, Key
from kybernate.bus.port import Conflict
from schemas.checkpoints import CatalogueEntry, Heir
from schemas.kubernetes import (
    ADMISSION_ANNOTATION,
    NODE_UNAVAILABLE_ANNOTATION,
    RESTORE_FROM_ANNOTATION,
    RESUME_LABEL,
)

SELECTOR: Final = f"{RESUME_LABEL}=true"
START_FROM_IMAGE: Final = "image"
TRIES: Final = 20
SOON_SECONDS: Final = 1.0


class Heirs:
    def __init__(self, means: Means, seen: Informer) -> None:
        """`seen`: the pods with the label."""
        self._means = means
        self._seen = seen
        self._catalogue = Fresh(means.catalogue.refresh)
        self._one_at_a_time = asyncio.Lock()

    async def answer(self, request: AdmissionRequest) -> Json:
        """What the API server is told of a pod that is to be made."""
        uid, pod = request.uid, request.object
        new = succession.newcomer(uid, request.namespace, pod)
        if isinstance(new, Start):
            return admission.admitted(uid, [], warning=new.warning)
        match await self._decide(new, request):
            case ComeAgain(message=message):
                return admission.sent_back(uid, message)
            case Inherit(entry=entry):
                return admission.admitted(uid, admission.resuming(pod, uid, entry.facts))
            case Start(warning=warning):
                return admission.admitted(uid, admission.starting(pod, uid), warning=warning)

    async def attend(self, key: Key) -> float | None:
        """A pod with the label changed: does it run, what does it wait for, was it missed?"""
        if (pod := self._seen.get(key)) is None:
            return None
        told = pod["metadata"].get("annotations", {})
        try:
            if RESTORE_FROM_ANNOTATION in told:
                entry = await self._means.catalogue.get(told[RESTORE_FROM_ANNOTATION])
                if entry and entry.heir and entry.heir.claim == told.get(ADMISSION_ANNOTATION):
                    await self._follow(pod, entry, entry.heir)
            elif ADMISSION_ANNOTATION not in told and pods.began(pod):
                return await self._look_for_missed(pod)
        except Conflict:  # another controller wrote; perhaps not all that was seen here
            return SOON_SECONDS
        return None

    async def _decide(self, new: Newcomer, request: AdmissionRequest) -> Decision:
        coming = await self._is_coming(new)  # what is made meanwhile is in the catalogue then
        for _ in range(TRIES):
            await self._catalogue.read()
            async with self._one_at_a_time:
                decision = await self._chosen(new, coming=coming)
                if not isinstance(decision, Inherit):
                    return decision
                away = await self._away(request.object, decision.entry)
                try:
                    if not request.dry_run:
                        await self._promise(decision.entry, new, started=bool(away))
                except Conflict:  # another controller has promised it
                    continue
            return Start(warning=away) if away else decision
        return ComeAgain(message="other new pods of this owner were faster; ask again in a moment")

    async def _chosen(self, new: Newcomer, *, coming: bool) -> Decision:
        entries = self._means.catalogue.seen()
        labelled = await self._labelled(new) if succession.promised(new, entries) else []
        return succession.decide(new, entries, labelled, self._means.clock(), coming=coming)

    async def _is_coming(self, new: Newcomer) -> bool:
        """Whether a pod is gone already of which a checkpoint is still being made."""
        for action in self._means.records.unfinished():
            if (old := succession.leaving(new, action.order)) is not None:
                pod = await self._means.kube.get(PODS, new.namespace, old.name)
                if pod is None or pod["metadata"]["uid"] != old.uid or pods.over(pod):
                    return True
        return False

    async def _labelled(self, new: Newcomer) -> list[Json]:
        found, _ = await self._means.kube.listed(PODS, namespace=new.namespace, selector=SELECTOR)
        return found

    async def _promise(self, entry: CatalogueEntry, new: Newcomer, *, started: bool) -> None:
        since = self._means.clock()
        heir = Heir(claim=new.request, since=since, started=started)
        await self._means.catalogue.bequeath(entry, heir)

    async def _away(self, pod: Json, entry: CatalogueEntry) -> str:
        """Why the pod starts from its image rather than wait for the node, if it wants that."""
        wish = pod["metadata"].get("annotations", {}).get(NODE_UNAVAILABLE_ANNOTATION)
        if wish != START_FROM_IMAGE:
            return ""
        node = await self._means.kube.get(NODES, "", entry.facts.node)
        if trouble := pods.takes_no_pods(node):
            return (
                f"node {entry.facts.node} {trouble}, so the pod starts from its image; checkpoint "
                f"{entry.facts.id} stays: a KybernateRestore resumes it there"
            )
        return ""

    async def _follow(self, pod: Json, entry: CatalogueEntry, heir: Heir) -> None:
        if heir.started:
            return
        checkpoint, began = entry.facts.id, pods.began(pod)
        if began:
            before = entry.facts.pod.name if entry.facts.pod else ""
            words = f"goes on where pod {before} was, from checkpoint {checkpoint}"
            await self._means.tell(pod, conditions.RESUMED, words, warning=False)
        elif not pods.over(pod) and (waits := pods.unscheduled(pod)):
            words = (
                f"waits for node {entry.facts.node}, which holds its checkpoint {checkpoint}: "
                f"{waits}; docs/kubernetes.md tells how to start it from its image instead"
            )
            await self._means.tell(pod, conditions.WAITS_FOR_NODE, words, warning=True)
        seen = msgspec.structs.replace(heir, pod=pod["metadata"]["name"], started=began)
        if seen != heir:
            await self._means.catalogue.bequeath(entry, seen)

    async def _look_for_missed(self, pod: Json) -> float | None:
        """It runs from its image already, and so will nobody resume in its place later."""
        await self._catalogue.read()
        entry = succession.missed(
            pod, self._means.catalogue.seen(), self._seen.all(), self._means.clock()
        )
        if isinstance(entry, ComeAgain):
            return succession.REQUEST_SECONDS
        if entry is None:
            return None
        words = (
            f"was started from its image, because no controller was reached when it was made; "
            f"checkpoint {entry.facts.id} stays: a KybernateRestore resumes it"
        )
        await self._means.tell(pod, conditions.STARTED_FROM_IMAGE, words, warning=True)
        at, now = pod["metadata"], self._means.clock()
        heir = Heir(claim=at["uid"], since=now, pod=at["name"], started=True)
        await self._means.catalogue.bequeath(entry, heir)
        return None
