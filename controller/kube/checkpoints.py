"""KybernateCheckpoint: from the resource to an action, and from the action back to its status.

The action's id follows from the resource and stands in the status before the action is made, so
whoever comes next goes on with the same one. A refusal of the pod ends it; a node that takes no
jobs is waited for, up to the resource's time-out.
"""

import uuid
from typing import Final

import msgspec

from controller.kube import conditions, pods
from controller.kube.client import CHECKPOINTS, PODS, Json
from controller.kube.conditions import Conditions, Refusal
from controller.kube.means import Means
from controller.kube.pods import Source
from controller.kube.watch import Informer, Key
from controller.machine import NotAllowed
from controller.refusals import Refused
from kybernate import telemetry
from kybernate.bus.port import Conflict
from schemas import reasons
from schemas.actions import Action, ActionState
from schemas.checkpoints import CheckpointState
from schemas.kubernetes import (
    CHECKPOINT_FINALIZER,
    CheckpointPhase,
    CheckpointSpec,
    CheckpointStatus,
    DeletionPolicy,
    KybernateCheckpoint,
    StorageType,
)
from schemas.messages import Checkpointed
from schemas.orders import CheckpointOrder
from schemas.requests import DeleteRequest

SOON_SECONDS: Final = 0.3
NODE_SECONDS: Final = 3.0
ENDED: Final = frozenset({CheckpointPhase.COMPLETED, CheckpointPhase.FAILED})


def action_id(uid: str, generation: int) -> str:
    return str(uuid.uuid5(uuid.UUID(uid), f"generation {generation}"))


def order_of(action: str, spec: CheckpointSpec, source: Source) -> CheckpointOrder:
    return CheckpointOrder(
        parts=source.parts,
        checkpoint=action,
        leave_running=spec.leave_running,
        independent_gpu_processes=spec.gpu.independent_processes,
        pod=source.pod,
    )


def not_served(spec: CheckpointSpec) -> Refusal | None:
    """What may be written down already and is not done yet."""
    fields = []
    if spec.storage.type is not StorageType.LOCAL or spec.storage.path:
        fields.append("spec.storage other than the node's own folder")
    if not spec.gpu.enabled:
        fields.append("spec.gpu.enabled: false")
    if not fields:
        return None
    words = f"{' and '.join(fields)} is not served yet; leave it out"
    return Refusal(reason=conditions.NOT_SERVED, message=words)


def begun(of: KybernateCheckpoint, source: Source, now: float) -> CheckpointStatus:
    """The action's id is chosen; from here on it stays this one."""
    generation = of.metadata.generation
    told = _conditions(of, now).working(conditions.CHECKPOINT_IN_PROGRESS, "the pod was found")
    return CheckpointStatus(
        action=action_id(of.metadata.uid, generation),
        pod_uid=source.pod.uid,
        node_name=source.node,
        start_time=conditions.timestamp(now),
        conditions=told,
        observed_generation=generation,
    )


def waiting(of: KybernateCheckpoint, refusal: Refusal, now: float) -> CheckpointStatus:
    told = _conditions(of, now).working(refusal.reason, refusal.message)
    return msgspec.structs.replace(_status(of), conditions=told)


def failed(of: KybernateCheckpoint, refusal: Refusal, now: float) -> CheckpointStatus:
    return msgspec.structs.replace(
        _ended(of, now),
        phase=CheckpointPhase.FAILED,
        conditions=_conditions(of, now).failed(conditions.CHECKPOINT_FAILED, refusal),
    )


def followed(of: KybernateCheckpoint, action: Action, now: float) -> CheckpointStatus:
    """What the action's record says, as the resource's status."""
    match action:
        case Action(state=ActionState.COMPLETED, result=Checkpointed(checkpoint=facts)):
            return msgspec.structs.replace(
                _ended(of, action.updated),
                phase=CheckpointPhase.COMPLETED,
                checkpoint_ref=facts.id,
                checkpoint_size=conditions.size(facts.size),
                conditions=_conditions(of, now).done(
                    conditions.CHECKPOINT_COMPLETED, _with_notes(action, facts.id)
                ),
            )
        case Action(ended=True):
            return failed(of, _why(action), now)
        case Action(state=ActionState.RUNNING, result=Checkpointed(checkpoint=facts)):
            words = f"checkpoint {facts.id} is durable, its pod is being ended"
            phase = CheckpointPhase.IN_PROGRESS
        case Action(state=ActionState.RUNNING):
            step = action.steps[-1].step if action.steps else "accepted"
            words, phase = f"{action.node} is at work: {step}", CheckpointPhase.IN_PROGRESS
        case _:
            words, phase = f"the job is on its way to {action.node}", CheckpointPhase.PENDING
    told = _conditions(of, now).working(conditions.CHECKPOINT_IN_PROGRESS, words)
    return msgspec.structs.replace(_status(of), phase=phase, conditions=told)


def edited(spec: CheckpointSpec, order: CheckpointOrder) -> str:
    """Fields that say something else than what was done; empty when none does."""
    pod = order.pod
    if pod is None:
        return ""
    containers = [spec.container_name] if spec.container_name else pods.containers_of(pod)
    vouched = spec.gpu.independent_processes
    asked = (spec.pod_name, containers, spec.leave_running, vouched)
    done = (
        pod.name,
        [part.name for part in order.parts],
        order.leave_running,
        order.independent_gpu_processes,
    )
    names = ("spec.podName", "spec.containerName", "spec.leaveRunning", "spec.gpu")
    differing = zip(names, asked, done, strict=True)
    return ", ".join(name for name, one, other in differing if one != other)


class Checkpoints:
    def __init__(self, means: Means, seen: Informer) -> None:
        self._means = means
        self._seen = seen

    async def attend(self, key: Key) -> float | None:
        if (found := self._seen.get(key)) is None:
            return None
        of = msgspec.convert(found, KybernateCheckpoint)
        if of.metadata.deletion_timestamp:
            return await self._end(of)
        if of.status is None or of.status.action is None:
            return await self._begin(of)
        if of.status.phase in ENDED:
            return await self._after(of)
        return await self._go_on(of)

    async def _begin(self, of: KybernateCheckpoint) -> float | None:
        if of.status is not None and of.status.phase in ENDED:
            return None
        source = not_served(of.spec) or await self._source(of)
        if isinstance(source, Refusal):
            await self._fail(of, source)
            return None
        if CHECKPOINT_FINALIZER not in of.metadata.finalizers:
            await self._set_finalizers(of, (*of.metadata.finalizers, CHECKPOINT_FINALIZER))
            return SOON_SECONDS
        await self._show(of, begun(of, source, self._means.clock()))
        return SOON_SECONDS

    async def _go_on(self, of: KybernateCheckpoint) -> float | None:
        row = await self._means.records.at_hand(_status(of).action or "")
        if row is None:
            return await self._start(of)
        await self._end_pod(row.value)
        status = followed(of, row.value, self._means.clock())
        if status.phase in ENDED:
            await self._tell_end(of, status)
        await self._show(of, status)
        return None if status.phase in ENDED else SOON_SECONDS

    async def _tell_end(self, of: KybernateCheckpoint, status: CheckpointStatus) -> None:
        """Before the status says so, as nobody comes back here afterwards."""
        last, failed = status.conditions[-1], status.phase is CheckpointPhase.FAILED
        await self._means.tell(of, last.reason, last.message, warning=failed)

    async def _end_pod(self, action: Action) -> None:
        """Delete the pod whose checkpoint is durable, while its containers still stand: kubelet
        starts none anew of a pod that is being deleted.
        """
        order = action.order
        if isinstance(order, CheckpointOrder) and order.ends_pod and order.pod and action.result:
            pod, grace = order.pod, pods.grace_of(order.pod)
            await self._means.kube.delete(PODS, pod.namespace, pod.name, uid=pod.uid, grace=grace)

    async def _start(self, of: KybernateCheckpoint) -> float | None:
        status, now = _status(of), self._means.clock()
        source = await self._source(of)
        if isinstance(source, Source) and source.pod.uid != status.pod_uid:
            words = f"pod {of.spec.pod_name} was replaced by another one of its name; ask anew"
            source = Refusal(reason=conditions.SOURCE_POD_REPLACED, message=words)
        if isinstance(source, Refusal):
            await self._fail(of, source)
            return None
        deadline = conditions.seconds(status.start_time or "") + of.spec.timeout
        try:
            await self._means.nodes.taking_jobs(source.node)
        except Refused as refused:
            refusal = refusal_of(refused)
            if now > deadline:
                await self._fail(of, refusal)
                return None
            if refusal.reason not in {one.reason for one in status.conditions}:
                await self._means.tell(of, refusal.reason, refusal.message, warning=True)
                await self._show(of, waiting(of, refusal, now))
            return NODE_SECONDS
        await self._record(of, source, deadline)
        return SOON_SECONDS

    async def _record(self, of: KybernateCheckpoint, source: Source, deadline: float) -> None:
        action, now = _status(of).action or "", self._means.clock()
        order = order_of(action, of.spec, source)
        try:
            await self._means.engine.start(
                Action(
                    id=action,
                    kind="checkpoint",
                    node=source.node,
                    order=order,
                    state=ActionState.PENDING,
                    created=now,
                    updated=now,
                    deadline=deadline,
                    traceparent=telemetry.traceparent(),
                    labels={"kubernetes": f"{of.metadata.namespace}/{of.metadata.name}"},
                )
            )
        except Conflict:  # another controller was faster, with the same
            return
        names = ", ".join(part.name for part in source.parts)
        words = f"checkpointing {names} on node {source.node}"
        await self._means.tell(of, conditions.CHECKPOINT_IN_PROGRESS, words, warning=False)

    async def _after(self, of: KybernateCheckpoint) -> float | None:
        """What was edited since is told."""
        status = _status(of)
        if of.metadata.generation == status.observed_generation:
            return None
        row = await self._means.records.at_hand(status.action or "")
        if row is None or not isinstance(row.value.order, CheckpointOrder):
            return None
        fields = edited(of.spec, row.value.order)
        told = followed(of, row.value, self._means.clock())
        if fields:
            changed = _conditions(of, self._means.clock()).edited(
                f"{fields} was changed after creation, which has no effect; change it back, or "
                "make a new resource"
            )
            told = msgspec.structs.replace(told, conditions=changed)
            words = changed[-1].message
            await self._means.tell(of, conditions.SPEC_CHANGED, words, warning=True)
        generation = of.metadata.generation
        await self._show(of, msgspec.structs.replace(told, observed_generation=generation))
        return None

    async def _source(self, of: KybernateCheckpoint) -> Source | Refusal:
        pod = await self._means.kube.get(PODS, of.metadata.namespace, of.spec.pod_name)
        if pod is None:
            words = (
                f"there is no pod {of.spec.pod_name} in namespace {of.metadata.namespace}; "
                "see `kubectl get pods`"
            )
            return Refusal(reason=conditions.SOURCE_POD_NOT_FOUND, message=words)
        return pods.source(pod, of.spec.container_name)

    async def _fail(self, of: KybernateCheckpoint, refusal: Refusal) -> None:
        await self._means.tell(of, refusal.reason, refusal.message, warning=True)
        await self._show(of, failed(of, refusal, self._means.clock()))

    async def _end(self, of: KybernateCheckpoint) -> float | None:
        """The resource is being deleted: what it made goes first, unless that is kept."""
        if CHECKPOINT_FINALIZER not in of.metadata.finalizers:
            return None
        if (wait := await self._unfinished(of)) or (wait := await self._undeleted(of)):
            return wait
        rest = tuple(one for one in of.metadata.finalizers if one != CHECKPOINT_FINALIZER)
        await self._set_finalizers(of, rest)
        return None

    async def _unfinished(self, of: KybernateCheckpoint) -> float | None:
        """Cancel the checkpoint that is still being made."""
        action = of.status.action if of.status else None
        row = await self._means.records.at_hand(action) if action else None
        if row is None or row.value.ended:
            return None
        await self._end_pod(row.value)
        try:
            await self._means.engine.cancel(row.key)
        except NotAllowed:  # it has just ended
            return SOON_SECONDS
        return SOON_SECONDS

    async def _undeleted(self, of: KybernateCheckpoint) -> float | None:
        """Delete the checkpoint by an action of its own; None when there is nothing to wait for."""
        made = of.status.action if of.status else None
        entry = await self._means.catalogue.get(made) if made else None
        if (
            of.spec.deletion_policy is DeletionPolicy.KEEP
            or entry is None
            or entry.state is CheckpointState.DELETED
        ):
            return None
        action, again = await self._deletion(of)
        try:
            request = DeleteRequest(checkpoint=entry.facts.id)
            await self._means.service.request(request, key=action)
        except Refused as refused:
            words = (
                f"the checkpoint cannot be deleted yet ({refused.reason}); to keep it and be rid "
                "of the resource, set spec.deletionPolicy to Keep"
            )
            await self._means.tell(of, conditions.DELETE_WAITS, words, warning=True)
            return NODE_SECONDS
        return again

    async def _deletion(self, of: KybernateCheckpoint) -> tuple[str, float]:
        """The id of the delete action: a new one after each that failed."""
        action, again = str(uuid.uuid5(uuid.UUID(of.metadata.uid), "delete")), SOON_SECONDS
        while (row := await self._means.records.at_hand(action)) and row.value.ended:
            if row.value.state is ActionState.COMPLETED:
                break
            action, again = str(uuid.uuid5(uuid.UUID(action), "again")), NODE_SECONDS
        return action, again

    async def _set_finalizers(self, of: KybernateCheckpoint, finalizers: tuple[str, ...]) -> None:
        at = of.metadata
        body: Json = {
            "metadata": {
                "resourceVersion": at.resource_version,
                "finalizers": list(finalizers),
            }
        }
        await self._means.kube.patch(CHECKPOINTS, at.namespace, at.name, body)

    async def _show(self, of: KybernateCheckpoint, status: CheckpointStatus) -> None:
        await self._means.show(CHECKPOINTS, of, status)


def refusal_of(refused: Refused) -> Refusal:
    advice = f"; {refused.problem.advice}" if refused.problem.advice else ""
    return Refusal(reason=refused.reason, message=f"{refused}{advice}")


def _status(of: KybernateCheckpoint) -> CheckpointStatus:
    return of.status or CheckpointStatus()


def _conditions(of: KybernateCheckpoint, now: float) -> Conditions:
    return Conditions(before=_status(of).conditions, generation=of.metadata.generation, now=now)


def _ended(of: KybernateCheckpoint, at: float) -> CheckpointStatus:
    status = _status(of)
    began = conditions.seconds(status.start_time) if status.start_time else at
    return msgspec.structs.replace(
        status,
        start_time=status.start_time or conditions.timestamp(at),
        completion_time=conditions.timestamp(at),
        duration=conditions.duration(at - began),
        observed_generation=status.observed_generation or of.metadata.generation,
    )


def _with_notes(action: Action, checkpoint: str) -> str:
    notes = (step.note for step in action.steps if step.note)
    return "; ".join((f"checkpoint {checkpoint} is durable", *notes))


def _why(action: Action) -> Refusal:
    failure = action.failure
    if failure is None:
        words = f"the action {action.id} was {action.state}; make a new resource to try again"
        return Refusal(reason=reasons.CANCELLED, message=words)
    step = f" (step {failure.step})" if failure.step else ""
    advice = f"; {failure.advice}" if failure.advice else ""
    return Refusal(reason=failure.reason, message=f"{failure.message}{step}{advice}")
