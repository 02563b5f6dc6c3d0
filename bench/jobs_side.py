"""What both sides of the comparison of job throughput have in common."""

import time
import uuid
from typing import Protocol

from schemas.actions import Action, ActionState
from schemas.orders import RestoreOrder, Target

NODE = "bench"
DEADLINE_SECONDS = 3600.0


class Side(Protocol):
    async def complete(self, action: Action) -> None:
        """Record the action, get its job on the way, and return when its end is recorded."""


def an_action() -> Action:
    """A new one for a container of its own."""
    identity, now = str(uuid.uuid4()), time.time()
    return Action(
        id=identity,
        kind="restore",
        node=NODE,
        order=RestoreOrder(
            checkpoint=identity,
            part=identity,
            target=Target(namespace="default", container=identity),
        ),
        state=ActionState.PENDING,
        created=now,
        updated=now,
        deadline=now + DEADLINE_SECONDS,
        traceparent=f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-00",
    )
