"""`kybernate checkpoint --pod`: a KybernateCheckpoint, asked for by the user and followed.

The way is Kubernetes' own: what the user may do decides the API server, and whatever becomes of
this program, the controllers go on with the resource.
"""

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from controller.kube.client import CHECKPOINTS, Json, Kube, KubeProblem, KubeUnavailable, Missing
from controller.kube.client import connect as connect_to
from kybernate.cli.connection import UNREACHABLE_FOR
from kybernate.cli.exits import Failed, Interrupted, Refused, Stop, TimedOut, Unreachable
from kybernate.problems import CannotServe
from kybernate.tasks import jittered
from schemas.kubernetes import (
    API_VERSION,
    CheckpointPhase,
    CheckpointSpec,
    CheckpointStatus,
    KybernateCheckpoint,
)
from schemas.reasons import DEADLINE_EXCEEDED

POLL_SECONDS: Final = 0.4
GRACE_SECONDS: Final = 30.0
"""Controllers give a checkpoint up at its time-out; this is for them to say so."""


def checkpoint(pod: str, given: dict[str, Any]) -> None:
    """Ask for the pod's checkpoint, wait for it unless told otherwise, print what came of it."""
    spec = CheckpointSpec(
        pod_name=pod, leave_running=given["leave_running"], timeout=max(1, round(given["timeout"]))
    )
    asked = Asked(namespace=given["namespace"], spec=spec)
    try:
        made = asyncio.run(_made(given["kubeconfig"], asked, wait=given["wait"]))
    except KeyboardInterrupt as error:
        raise asked.interrupted() from error
    except (KubeProblem, CannotServe) as error:
        raise _in_words(error) from error
    if given["output"] == "json":
        click.echo(json.dumps(made))
    else:
        click.echo(asked.line(made) if given["wait"] else made["metadata"]["name"])


class Asked(msgspec.Struct, kw_only=True):
    """The resource, by the name that the API server gives it."""

    namespace: str
    spec: CheckpointSpec
    name: str = ""

    def body(self) -> Json:
        return {
            "apiVersion": API_VERSION,
            "kind": "KybernateCheckpoint",
            "metadata": {"generateName": f"{self.spec.pod_name}-"},
            "spec": msgspec.to_builtins(self.spec),
        }

    def line(self, made: Json) -> str:
        status = _status(made)
        goes = "runs on" if self.spec.leave_running else "is deleted"
        return (
            f"{status.checkpoint_ref}  {self.namespace}/{self.spec.pod_name} {goes}, "
            f"{status.checkpoint_size} on {status.node_name}, {status.duration}, kyc {self.name}"
        )

    def interrupted(self) -> Stop:
        if not self.name:
            return Interrupted("interrupted; nothing was asked for yet")
        return Interrupted(
            f"interrupted; KybernateCheckpoint {self.name} goes on",
            f"`kubectl delete kyc {self.name} --namespace {self.namespace}` cancels it",
        )

    def ignored(self) -> Stop:
        return TimedOut(
            f"KybernateCheckpoint {self.name} did not end in {self.spec.timeout} s",
            f"see `kubectl describe kyc {self.name} --namespace {self.namespace}`; with no status "
            "at all there, no controller runs with --kubernetes",
        )


async def _made(kubeconfig: Path | None, asked: Asked, *, wait: bool) -> Json:
    """The resource when it has ended well; as it was made, when that is not waited for."""
    async with connect_to(kubeconfig) as kube:
        made = await kube.create(CHECKPOINTS, asked.namespace, asked.body())
        asked.name = made["metadata"]["name"]
        if not wait:
            return made
        ended = await _ended(kube, asked)
        status = _status(ended)
        if status.phase is CheckpointPhase.FAILED and status.action is None:
            uid = ended["metadata"]["uid"]  # nothing was begun: nothing of it stays
            await kube.delete(CHECKPOINTS, asked.namespace, asked.name, uid=uid)
    if status.phase is CheckpointPhase.FAILED:
        raise _failed(asked, status)
    return ended


async def _ended(kube: Kube, asked: Asked) -> Json:
    told, silent_since = "", 0.0
    end = time.monotonic() + asked.spec.timeout + GRACE_SECONDS
    while time.monotonic() < end:
        try:
            seen = await kube.get(CHECKPOINTS, asked.namespace, asked.name)
            silent_since = 0.0
        except KubeUnavailable:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > UNREACHABLE_FOR:
                raise
        else:
            if seen is None:
                raise Failed(f"KybernateCheckpoint {asked.name} was deleted by somebody")
            if _status(seen).phase in {CheckpointPhase.COMPLETED, CheckpointPhase.FAILED}:
                return seen
            told = _tell(seen, told)
        await asyncio.sleep(jittered(POLL_SECONDS))
    raise asked.ignored()


def _tell(seen: Json, told: str) -> str:
    words = next((one.message for one in _status(seen).conditions if one.type == "Ready"), "")
    if words not in {"", told}:
        click.echo(f"  {words}", err=True)
    return words or told


def _status(made: Json) -> CheckpointStatus:
    return msgspec.convert(made, KybernateCheckpoint).status or CheckpointStatus()


def _failed(asked: Asked, status: CheckpointStatus) -> Stop:
    why = next((one for one in status.conditions if one.type == "Stalled"), None)
    words = f"{why.message} ({why.reason})" if why else "see its conditions"
    if status.action is None:
        return Refused(words)
    kind = TimedOut if why and why.reason == DEADLINE_EXCEEDED else Failed
    return kind(
        f"checkpoint of pod {asked.spec.pod_name} failed: {words}",
        f"see `kubectl describe kyc {asked.name} --namespace {asked.namespace}` and "
        f"`kybernate describe action {status.action}`",
    )


def _in_words(error: Exception) -> Stop:
    match error:
        case KubeUnavailable():
            return Unreachable(str(error), "name the cluster with --kubeconfig or KUBECONFIG")
        case CannotServe():
            return Unreachable(str(error))
        case Missing():
            return Refused(
                str(error),
                "see that the namespace is there, and install deploy/crds in the cluster",
            )
    return Refused(str(error))
