"""Checkpoint and restore by request, watched to the end of the action."""

import msgspec

from bench.call_clock import Interval, covered
from bench.user import User
from kybernate.embedded.workload import NAMESPACE
from schemas.actions import Action, ActionState
from schemas.messages import Checkpointed
from schemas.requests import CheckpointRequest, DeleteRequest, Request, RestoreRequest

BYTES = frozenset({"rootfs", "hash", "seal", "verify", "memory"})
"""Steps that hash, copy or make durable; the others call containerd, or are coordination."""


class Went(msgspec.Struct, frozen=True, kw_only=True):
    """How long an action took, and how much of it was neither containerd nor hashing nor fsync."""

    seconds: float
    coordination: float
    steps: dict[str, float]


class ActionFailed(Exception):
    """An action did not complete, so there is nothing to measure."""


class ThroughKybernate:
    def __init__(self, user: User, id: str, calls: list[Interval]) -> None:
        self._user = user
        self._id = id
        self._calls = calls
        self._checkpoint = ""

    async def checkpoint(self) -> Went:
        action, went = await self._ask(CheckpointRequest(container=self._id, namespace=NAMESPACE))
        if not isinstance(action.result, Checkpointed):
            raise ActionFailed(f"{action.id} tells of no checkpoint")
        self._checkpoint = action.result.checkpoint.id
        return went

    async def restore(self) -> Went:
        return (await self._ask(RestoreRequest(checkpoint=self._checkpoint)))[1]

    async def clean(self) -> None:
        await self._ask(DeleteRequest(checkpoint=self._checkpoint))

    async def _ask(self, request: Request) -> tuple[Action, Went]:
        self._calls.clear()
        asked = await self._user.ask(request)
        action = asked.action
        if action.state is not ActionState.COMPLETED:
            raise ActionFailed(f"{action.kind}: {action.failure}")
        return action, self._went(action, asked.window)

    def _went(self, action: Action, window: Interval) -> Went:
        steps = {step.step: step.seconds or 0.0 for step in action.steps}
        on_bytes = [
            (step.started, step.started + steps[step.step])
            for step in action.steps
            if step.step in BYTES
        ]
        seconds = window[1] - window[0]
        busy = covered([*self._calls, *on_bytes], window)
        return Went(seconds=seconds, coordination=seconds - busy, steps=steps)
