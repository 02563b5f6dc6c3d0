"""What the controller refuses, and why: nothing was changed when one of these is raised."""

from schemas import reasons
from schemas.requests import Problem


class Refused(Exception):
    """A request that is not carried out; the message says why, the advice what to do."""

    def __init__(self, reason: str, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(message=message, reason=reason, advice=advice)

    @property
    def reason(self) -> str:
        return self.problem.reason


def unknown_action(action: str) -> Refused:
    return Refused(
        reasons.UNKNOWN_ACTION,
        f"there is no action {action!r}",
        "see `kybernate get actions` for those that are known",
    )


def unknown_checkpoint(checkpoint: str) -> Refused:
    return Refused(
        reasons.UNKNOWN_CHECKPOINT,
        f"there is no checkpoint {checkpoint!r}",
        "see `kybernate get checkpoints` for those that are known",
    )


def deleted_checkpoint(checkpoint: str) -> Refused:
    return Refused(
        reasons.UNKNOWN_CHECKPOINT,
        f"checkpoint {checkpoint} was deleted",
        "see `kybernate get checkpoints` for those that are left",
    )


def missing_checkpoint(checkpoint: str, node: str, problem: str) -> Refused:
    return Refused(
        reasons.CHECKPOINT_MISSING,
        f"checkpoint {checkpoint} is missing: {problem}",
        f"bring its folder back to node {node}, whose worker sees it within a minute or two; or "
        "name a node that has a copy of it (--node)",
    )


def checkpoint_in_use(checkpoint: str, action: str) -> Refused:
    return Refused(
        reasons.CHECKPOINT_IN_USE,
        f"checkpoint {checkpoint} is in use by action {action}",
        f"wait for it to end, or cancel it: `kybernate cancel {action}`",
    )


def already_ended(action: str, state: str) -> Refused:
    return Refused(
        reasons.ALREADY_ENDED,
        f"action {action} has ended already: it is {state}",
        "there is nothing left to cancel",
    )


def no_gpu_to_map(checkpoint: str) -> Refused:
    return Refused(
        reasons.INVALID_REQUEST,
        f"checkpoint {checkpoint} holds no GPU memory that could go to another GPU",
        "leave out the map of GPUs (--gpu)",
    )


def key_of_another(action: str) -> Refused:
    return Refused(
        reasons.INVALID_REQUEST,
        f"action {action} exists already and asks for something else",
        "use a new Idempotency-Key for a new request",
    )
