"""Deletes a checkpoint: its folder, or the container that waits in memory as one.

One step, which commits: the folder is renamed away first, and gone as a checkpoint from then on.
Deleting what is not there succeeds.
"""

from kybernate.store import NoSuchCheckpoint
from node_worker.actors import Means, Step, StepActor
from node_worker.facts import Sleeper
from node_worker.tasks_of import Tasks
from node_worker.threads import in_thread
from schemas.base import Record, decode
from schemas.messages import Deleted
from schemas.orders import DeleteOrder


class DeleteNotes(Record, frozen=True, kw_only=True):
    """Nothing: a deletion is asked of the world alone."""


class DeleteActor(StepActor[DeleteNotes]):
    def __init__(self, means: Means, order: DeleteOrder) -> None:
        self._means = means
        self._checkpoint = order.checkpoint
        super().__init__(DeleteNotes, (Step(name="delete", do=self._delete),), commit="delete")

    async def landed(self, _: DeleteNotes) -> bool:
        return self._sleeper() is None and not await in_thread(self._is_there)

    async def result(self, _: DeleteNotes) -> Deleted:
        return Deleted(checkpoint=self._checkpoint)

    async def _delete(self, _: DeleteNotes) -> None:
        if (sleeper := self._sleeper()) is not None:
            await Tasks(self._means.runtime, sleeper.target).end(sleeper.pid)
            self._means.ledger.forget_sleeper(self._checkpoint)
        await in_thread(self._means.store.delete, self._checkpoint)

    def _sleeper(self) -> Sleeper | None:
        raw = self._means.ledger.sleeper(self._checkpoint)
        return None if raw is None else decode(raw, Sleeper)

    def _is_there(self) -> bool:
        try:
            self._means.store.folder(self._checkpoint)
        except NoSuchCheckpoint:
            return False
        return True
