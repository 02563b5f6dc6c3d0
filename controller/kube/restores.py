"""KybernateRestore: from the resource to a new pod, and from the pod back to the status.

The pod's name stands in the status before the pod is made, and the pod carries the resource's UID,
so that two controllers make one pod. A pod that does not come to run is deleted again.
"""

from typing import Final

import msgspec

from controller.kube import conditions, pods
from controller.kube.checkpoints import refusal_of
from controller.kube.client import PODS, RESTORES, Json, KubeRefused, Taken
from controller.kube.conditions import Conditions, Refusal
from controller.kube.means import Means
from controller.kube.watch import Informer, Key
from controller.refusals import Refused
from controller.service import UUID
from schemas import reasons
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.kubernetes import (
    RESTORE_LABEL,
    CheckpointPhase,
    KybernateCheckpoint,
    KybernateRestore,
    RestorePhase,
    RestoreSpec,
    RestoreStatus,
)
from schemas.manifest import CheckpointFacts
from schemas.orders import Place

SOON_SECONDS: Final = 0.3
LOOK_SECONDS: Final = 3.0
ENDED: Final = frozenset({RestorePhase.RUNNING, RestorePhase.FAILED})
NEVER_MADE: Final = frozenset({conditions.POD_NAME_TAKEN, conditions.POD_REFUSED})
"""The pod of that name is somebody else's, or there is none."""
WAITED_FOR: Final = frozenset(
    {conditions.CHECKPOINT_NOT_READY, reasons.NODE_NOT_READY, reasons.UNKNOWN_NODE}
)
"""What may change by itself."""


def referred(spec: RestoreSpec, checkpoint: KybernateCheckpoint | None) -> str | Refusal:
    """The id of the checkpoint that is meant, given the resource of that name."""
    name = spec.checkpoint_ref
    if checkpoint is None:
        if UUID.fullmatch(name):
            return name
        words = f"there is no KybernateCheckpoint {name} in this namespace; see `kubectl get kyc`"
        return Refusal(reason=conditions.CHECKPOINT_NOT_FOUND, message=words)
    status = checkpoint.status
    if status is not None and status.checkpoint_ref is not None:
        return status.checkpoint_ref
    if status is not None and status.phase is CheckpointPhase.FAILED:
        words = f"KybernateCheckpoint {name} failed; name one that is Completed"
        return Refusal(reason=conditions.CHECKPOINT_UNUSABLE, message=words)
    words = f"KybernateCheckpoint {name} is not completed yet"
    return Refusal(reason=conditions.CHECKPOINT_NOT_READY, message=words)


def _not_there(checkpoint: str | None, entry: CatalogueEntry | None) -> Refusal:
    if entry is not None and entry.state is CheckpointState.MISSING:
        words = f"checkpoint {checkpoint} is missing: {entry.problem}"
        return Refusal(reason=conditions.CHECKPOINT_NOT_READY, message=words)
    words = "the checkpoint was deleted" if entry else "no such checkpoint is known"
    words = f"{words}: {checkpoint}; see `kybernate get checkpoints`"
    return Refusal(reason=conditions.CHECKPOINT_NOT_FOUND, message=words)


def usable(
    spec: RestoreSpec, namespace: str, entry: CatalogueEntry | None
) -> CheckpointFacts | Refusal:
    """The checkpoint, or why no pod of this namespace resumes from it."""
    if entry is None or entry.state is not CheckpointState.READY:
        return _not_there(spec.checkpoint_ref, entry)
    facts = entry.facts
    if facts.pod is None or facts.place != Place.DISK:
        words = f"checkpoint {facts.id} is not one of a pod on disk; restore it with `kybernate`"
        return Refusal(reason=conditions.CHECKPOINT_UNUSABLE, message=words)
    if facts.pod.namespace != namespace:
        words = f"checkpoint {facts.id} is of another namespace; restore it in its own"
        return Refusal(reason=conditions.OTHER_NAMESPACE, message=words)
    if spec.target_pod.node_name not in {None, facts.node}:
        words = (
            f"checkpoint {facts.id} lies on node {facts.node} and cannot be restored on "
            f"{spec.target_pod.node_name} so far; leave out spec.targetPod.nodeName"
        )
        return Refusal(reason=conditions.NODE_LACKS_CHECKPOINT, message=words)
    if spec.target_pod.resources is not None and len(pods.containers_of(facts.pod)) > 1:
        words = (
            f"checkpoint {facts.id} is of a pod with several containers, for which "
            "spec.targetPod.resources is not served; leave it out"
        )
        return Refusal(reason=conditions.NOT_SERVED, message=words)
    return facts


def reserved(of: KybernateRestore, facts: CheckpointFacts, now: float) -> RestoreStatus:
    """The pod's name is chosen; from here on it stays this one."""
    original = facts.pod.name if facts.pod else facts.parts[0].name
    words = f"checkpoint {facts.id} is resumed on node {facts.node}"
    return msgspec.structs.replace(
        _status(of),
        phase=RestorePhase.RESTORING,
        checkpoint=facts.id,
        restored_pod_name=pods.restored_name(original, of.spec.target_pod, of.metadata.uid),
        node_name=facts.node,
        start_time=_status(of).start_time or conditions.timestamp(now),
        conditions=_conditions(of, now).working(conditions.RESTORE_IN_PROGRESS, words),
        observed_generation=of.metadata.generation,
    )


def waiting(of: KybernateRestore, refusal: Refusal, now: float) -> RestoreStatus:
    return msgspec.structs.replace(
        _status(of),
        start_time=_status(of).start_time or conditions.timestamp(now),
        conditions=_conditions(of, now).working(refusal.reason, refusal.message),
        observed_generation=of.metadata.generation,
    )


def failed(of: KybernateRestore, refusal: Refusal, now: float) -> RestoreStatus:
    status = _status(of)
    made = refusal.reason not in NEVER_MADE
    return msgspec.structs.replace(
        status,
        phase=RestorePhase.FAILED,
        restored_pod_name=status.restored_pod_name if made else None,
        start_time=status.start_time or conditions.timestamp(now),
        duration=_duration(status, now),
        conditions=_conditions(of, now).failed(conditions.RESTORE_FAILED, refusal),
        observed_generation=status.observed_generation or of.metadata.generation,
    )


def followed(of: KybernateRestore, pod: Json, now: float) -> RestoreStatus:
    """What the pod says, as the resource's status."""
    status = _status(of)
    if words := pods.trouble(pod):
        return failed(of, Refusal(reason=conditions.POD_FAILED, message=_advised(pod, words)), now)
    if pods.runs(pod):
        told = f"pod {pod['metadata']['name']} runs"
        return msgspec.structs.replace(
            status,
            phase=RestorePhase.RUNNING,
            node_name=pod["spec"].get("nodeName"),
            restore_time=conditions.timestamp(now),
            duration=_duration(status, now),
            conditions=_conditions(of, now).done(conditions.RESTORE_COMPLETED, told),
        )
    name = pod["metadata"]["name"]
    words = f"pod {name} does not run yet: {pods.waits_for(pod) or 'it is being started'}"
    if now > _deadline(of):
        refusal = Refusal(reason=reasons.DEADLINE_EXCEEDED, message=words)
        return failed(of, refusal, now)
    told_before = _conditions(of, now).working(conditions.RESTORE_IN_PROGRESS, words)
    return msgspec.structs.replace(status, conditions=told_before)


class Restores:
    def __init__(self, means: Means, seen: Informer, checkpoints: Informer) -> None:
        self._means = means
        self._seen = seen
        self._checkpoints = checkpoints

    async def attend(self, key: Key) -> float | None:
        if (found := self._seen.get(key)) is None or found["metadata"].get("deletionTimestamp"):
            return None
        of = msgspec.convert(found, KybernateRestore)
        status = _status(of)
        if status.phase in ENDED:
            await self._after(of)
            return None
        if status.restored_pod_name is None:
            return await self._begin(of)
        return await self._go_on(of)

    def keys_of(self, pod: Json) -> list[Key]:
        """The restore that made a pod."""
        uid = pod["metadata"].get("labels", {}).get(RESTORE_LABEL)
        return [
            (one["metadata"]["namespace"], one["metadata"]["name"])
            for one in self._seen.all()
            if one["metadata"]["uid"] == uid
        ]

    async def _begin(self, of: KybernateRestore) -> float | None:
        facts, now = await self._facts(of), self._means.clock()
        if isinstance(facts, CheckpointFacts):
            await self._show(of, reserved(of, facts, now))
            return SOON_SECONDS
        if facts.reason not in WAITED_FOR or now > _deadline(of):
            await self._fail(of, facts)
            return None
        if facts.reason not in {one.reason for one in _status(of).conditions}:
            await self._means.tell(of, facts.reason, facts.message, warning=True)
            await self._show(of, waiting(of, facts, now))
        return LOOK_SECONDS

    async def _facts(self, of: KybernateRestore) -> CheckpointFacts | Refusal:
        """The checkpoint, when it can be restored now."""
        if not of.spec.gpu.enabled:
            words = "spec.gpu.enabled: false is not served yet; leave it out"
            return Refusal(reason=conditions.NOT_SERVED, message=words)
        found = self._checkpoints.get((of.metadata.namespace, of.spec.checkpoint_ref))
        named = None if found is None else msgspec.convert(found, KybernateCheckpoint)
        checkpoint = referred(of.spec, named)
        if isinstance(checkpoint, Refusal):
            return checkpoint
        entry = await self._means.catalogue.get(checkpoint)
        facts = usable(of.spec, of.metadata.namespace, entry)
        if isinstance(facts, CheckpointFacts):
            try:
                await self._means.nodes.fitting(facts.node, facts)
            except Refused as refused:
                return refusal_of(refused)
        return facts

    async def _go_on(self, of: KybernateRestore) -> float | None:
        pod = await self._pod(of)
        if isinstance(pod, Refusal):
            await self._fail(of, pod)
            return None
        uid = pod["metadata"]["uid"]
        told = followed(of, pod, self._means.clock())
        told = msgspec.structs.replace(told, restored_pod_uid=uid)
        if told.phase in ENDED:  # before the status says so, as nobody tells it afterwards
            last, warning = told.conditions[-1], told.phase is RestorePhase.FAILED
            await self._means.tell(of, last.reason, last.message, warning=warning)
        await self._show(of, told)
        return None if told.phase in ENDED else LOOK_SECONDS

    async def _pod(self, of: KybernateRestore) -> Json | Refusal:
        """The restore's pod, made if that was not done yet."""
        status, at = _status(of), of.metadata
        name = status.restored_pod_name or ""
        pod = await self._means.kube.get(PODS, at.namespace, name)
        if pod is None and status.restored_pod_uid is None:
            try:
                return await self._make(of)
            except Taken:  # another controller was faster
                if (pod := await self._means.kube.get(PODS, at.namespace, name)) is None:
                    raise
        return _ours(of, pod)

    async def _make(self, of: KybernateRestore) -> Json | Refusal:
        entry = await self._means.catalogue.get(_status(of).checkpoint or "")
        facts = usable(of.spec, of.metadata.namespace, entry)
        if isinstance(facts, Refusal) or facts.pod is None:
            return facts if isinstance(facts, Refusal) else _gone(of)
        body = pods.restored(
            facts.pod,
            of.spec.target_pod,
            name=_status(of).restored_pod_name or "",
            restore_uid=of.metadata.uid,
            checkpoint=facts.id,
            gpu=bool(facts.gpus),
        )
        try:
            made = await self._means.kube.create(PODS, of.metadata.namespace, body)
        except Taken:
            raise
        except KubeRefused as error:
            words = f"the API server refuses the pod: {error}"
            return Refusal(reason=conditions.POD_REFUSED, message=words)
        words = f"made pod {body['metadata']['name']}"
        await self._means.tell(of, conditions.RESTORE_IN_PROGRESS, words, warning=False)
        return made

    async def _after(self, of: KybernateRestore) -> None:
        """The pod of a failed one goes once its words are kept; what was edited since is told."""
        status, at = _status(of), of.metadata
        if status.phase is RestorePhase.FAILED and (uid := status.restored_pod_uid):
            name = status.restored_pod_name or ""
            await self._means.kube.delete(PODS, at.namespace, name, uid=uid)
        if at.generation == status.observed_generation:
            return
        told = _conditions(of, self._means.clock()).edited(
            "the spec was changed after the restore had begun, which has no effect; make a new "
            "resource"
        )
        await self._means.tell(of, conditions.SPEC_CHANGED, told[-1].message, warning=True)
        edited = msgspec.structs.replace(status, conditions=told, observed_generation=at.generation)
        await self._show(of, edited)

    async def _fail(self, of: KybernateRestore, refusal: Refusal) -> None:
        await self._means.tell(of, refusal.reason, refusal.message, warning=True)
        await self._show(of, failed(of, refusal, self._means.clock()))

    async def _show(self, of: KybernateRestore, status: RestoreStatus) -> None:
        await self._means.show(RESTORES, of, status)


def _ours(of: KybernateRestore, pod: Json | None) -> Json | Refusal:
    if pod is None:
        return _gone(of)
    if pod["metadata"].get("labels", {}).get(RESTORE_LABEL) == of.metadata.uid:
        ends = "deletionTimestamp" in pod["metadata"] and not pods.runs(pod)
        return _gone(of) if ends else pod
    words = f"there is a pod {pod['metadata']['name']} already; name another in spec.targetPod.name"
    return Refusal(reason=conditions.POD_NAME_TAKEN, message=words)


def _gone(of: KybernateRestore) -> Refusal:
    words = f"pod {_status(of).restored_pod_name} was deleted before it ran; make a new resource"
    return Refusal(reason=conditions.POD_DELETED, message=words)


def _advised(pod: Json, words: str) -> str:
    return f"pod {pod['metadata']['name']} did not resume and was deleted: {words}"


def _status(of: KybernateRestore) -> RestoreStatus:
    return of.status or RestoreStatus()


def _conditions(of: KybernateRestore, now: float) -> Conditions:
    return Conditions(before=_status(of).conditions, generation=of.metadata.generation, now=now)


def _deadline(of: KybernateRestore) -> float:
    began = _status(of).start_time
    return (conditions.seconds(began) if began else float("inf")) + of.spec.timeout


def _duration(status: RestoreStatus, now: float) -> str:
    began = conditions.seconds(status.start_time) if status.start_time else now
    return conditions.duration(now - began)
