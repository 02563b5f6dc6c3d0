"""Which actor carries out which order."""

from typing import Any

from node_worker.actors import Means
from node_worker.checkpoint import CheckpointActor
from node_worker.delete import DeleteActor
from node_worker.executor import Actor
from node_worker.reporter import JobListener
from node_worker.restore import RestoreActor
from node_worker.suspend import SuspendActor
from node_worker.wake import WakeActor
from schemas.messages import Job
from schemas.orders import CheckpointOrder, DeleteOrder, Place, RestoreOrder


def actor_of(means: Means, job: Job, listener: JobListener) -> Actor[Any]:
    match job.order:
        case CheckpointOrder(place=Place.MEMORY) as order:
            return SuspendActor(means, job, order)
        case CheckpointOrder() as order:
            return CheckpointActor(means, job, order, listener)
        case RestoreOrder(place=Place.MEMORY) as order:
            return WakeActor(means, job, order)
        case RestoreOrder() as order:
            return RestoreActor(means, job, order)
        case DeleteOrder() as order:
            return DeleteActor(means, order)
