"""A checkpoint in memory: GPU memory moves to the host's, the processes are frozen, and stay.

Nothing is written but one row of the ledger, which commits. `wake` goes the way back; `delete`
gives the state up.
"""

import time

from kybernate import telemetry
from node_worker.actors import Means, Step, StepActor
from node_worker.facts import Sleeper
from node_worker.holding import HeldNotes, Holding
from schemas.base import decode, encode
from schemas.manifest import CheckpointFacts, PartFacts
from schemas.messages import Checkpointed, Job
from schemas.orders import CheckpointOrder, Place


class SuspendActor(StepActor[HeldNotes]):
    def __init__(self, means: Means, job: Job, order: CheckpointOrder) -> None:
        self._means = means
        self._job = job
        self._order = order
        self._held = Holding(means, job, order)
        super().__init__(
            HeldNotes,
            (
                *self._held.first_steps,
                *self._held.holding_steps,
                Step(name="record", do=self._record),
            ),
            commit="record",
        )

    async def landed(self, _: HeldNotes) -> bool:
        return self._kept() is not None

    async def result(self, _: HeldNotes) -> Checkpointed:
        kept = self._kept()
        if kept is None:
            raise LookupError(f"the row of checkpoint {self._order.checkpoint} is gone")
        return Checkpointed(checkpoint=kept.facts)

    async def _record(self, notes: HeldNotes) -> None:
        size = sum(sum(process.usage.values()) for process in notes.gpu_processes)
        facts = CheckpointFacts(
            id=self._order.checkpoint,
            node=self._means.settings.node,
            parts=tuple(
                PartFacts(name=one.part.name, target=one.part.target, image=one.container.image)
                for one in self._held.held
            ),
            created=time.time(),
            size=size,
            place=Place.MEMORY,
            gpus=self._held.evidence.gpus if notes.gpu_processes else (),
            pod=self._order.pod,
            traceparent=telemetry.traceparent(),
        )
        kept = Sleeper(
            action=self._job.action,
            facts=facts,
            pid=notes.pids[0],
            gpu_processes=notes.gpu_processes,
        )
        self._means.ledger.keep_sleeper(self._order.checkpoint, encode(kept))

    def _kept(self) -> Sleeper | None:
        raw = self._means.ledger.sleeper(self._order.checkpoint)
        kept = None if raw is None else decode(raw, Sleeper)
        return kept if kept is not None and kept.action == self._job.action else None
