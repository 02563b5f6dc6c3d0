"""Commands that change something: each posts an order and, unless told otherwise, waits for it."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from kybernate.cli import options, text, trace
from kybernate.cli.connection import UNREACHABLE_FOR, Connection
from kybernate.cli.exits import Failed, Interrupted, Refused, Stop, Unreachable, failed
from kybernate.cli.progress import Display, display
from schemas.actions import Action, ActionState
from schemas.messages import Checkpointed, Restored
from schemas.orders import OutsideTcp, Place
from schemas.requests import (
    DEFAULT_NAMESPACE,
    DEFAULT_TIMEOUT_SECONDS,
    CheckpointRequest,
    DeleteRequest,
    Request,
    RestoreRequest,
    misfit,
)

_timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=24 * 3600),
    default=DEFAULT_TIMEOUT_SECONDS,
    show_default=True,
    help="Seconds that the action may take; after that nothing is committed any more.",
)
_node = click.option("--node", help="Default: the node that has it.")
_NOT_FOR_CONTAINERS = ("kubeconfig",)
_NOT_FOR_PODS = ("node", "place", "outside_tcp", "independent_gpu_processes", "servers", "token")


def _ordering(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (options.connected, options.output, options.waiting, _timeout):
        command = option(command)
    return command


@click.command()
@click.argument("container", required=False)
@click.option(
    "--pod", metavar="NAME", help="A pod of Kubernetes instead, by a KybernateCheckpoint."
)
@click.option(
    "--namespace",
    "-n",
    default=DEFAULT_NAMESPACE,
    show_default=True,
    help="containerd's namespace of the container; with --pod the pod's in Kubernetes.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --pod: how the API server is reached; default: as kubectl does.",
)
@click.option("--dest", hidden=True)
@_node
@click.option(
    "--place",
    type=click.Choice([place.value for place in Place]),
    default=Place.DISK.value,
    show_default=True,
    help="disk: a durable folder. memory: only the GPU is freed, the processes stay, frozen.",
)
@click.option("--leave-running", is_flag=True, help="Let the container run on afterwards.")
@click.option(
    "--outside-tcp",
    type=click.Choice([what.value for what in OutsideTcp]),
    default=OutsideTcp.CLOSE.value,
    show_default=True,
    help="Connections to peers outside: closed in the resumed container, or a reason to refuse.",
)
@click.option(
    "--independent-gpu-processes",
    is_flag=True,
    help="Vouch that the container's CUDA processes share no GPU memory with each other.",
)
@_ordering
@click.pass_context
def checkpoint(context: click.Context, /, **given: Any) -> None:
    """Checkpoint CONTAINER and stop it, or let it run on with --leave-running.

    With --pod a pod of Kubernetes, which is deleted once its state is durable. Prints the id of
    the checkpoint, which `kybernate restore` and the annotation kybernate.io/restore-from take.
    """
    _check_subject(context, given)
    if given["pod"] is None:
        _order(_request(CheckpointRequest, given), given)
        return
    from kybernate.cli import pods  # noqa: PLC0415 - Kubernetes' client is slow to import

    pods.checkpoint(given["pod"], given)


@click.command()
@click.argument("checkpoint")
@click.option("--container", help="Which one of a checkpoint of several; default: the only one.")
@click.option("--name", help="Name of the resumed container; default: the name it had.")
@click.option(
    "--gpu",
    "gpu_map",
    multiple=True,
    metavar="OLD=NEW",
    callback=lambda _context, _parameter, pairs: _mapping(pairs),
    help="UUIDs of a GPU at the checkpoint and of its successor; default: the node decides.",
)
@_node
@_ordering
def restore(**given: Any) -> None:
    """Resume a container of CHECKPOINT (an id from `kybernate get checkpoints`)."""
    _order(_request(RestoreRequest, given), given)


@click.group()
def delete() -> None:
    """Delete a checkpoint, or forget a node that is gone."""


@delete.command("checkpoint")
@click.argument("checkpoint", metavar="ID")
@_ordering
def delete_checkpoint(**given: Any) -> None:
    """Delete the files of the checkpoint ID. One in memory is the container that waits there
    frozen: that ends.
    """
    _order(_request(DeleteRequest, given), given)


@delete.command("node")
@click.argument("node", metavar="NAME")
@options.connected
@options.output
def delete_node(node: str, **given: Any) -> None:
    """Forget the node NAME, whose worker does not report any more. Checkpoints that lie on it
    stay listed, as missing; should its worker start again, it is back, and they are.
    """
    deleted = Connection(given["servers"], given["token"]).delete_node(node)
    if given["output"] == "json":
        click.echo(msgspec.json.encode(deleted))
        return
    click.echo(f"node {deleted.node} is forgotten")
    for checkpoint in deleted.missing:
        click.echo(f"{checkpoint}  missing with it")


@click.command()
@click.argument("action")
@options.connected
@options.output
@options.waiting
def cancel(action: str, **given: Any) -> None:
    """Cancel ACTION: its node undoes what it did, unless the result is already durable."""
    connection = Connection(given["servers"], given["token"])
    seen = connection.cancel(action)
    if given["wait"]:
        seen = _followed(connection, seen)
    _print(seen, given["output"])
    if seen.state in {ActionState.COMPLETED, ActionState.FAILED}:
        raise Failed(
            f"action {seen.id} was not cancelled, it had ended: {seen.state}",
            f"see `kybernate describe action {seen.id}`",
        )


def _check_subject(context: click.Context, given: dict[str, Any]) -> None:
    if given["dest"] is not None:
        raise Refused(
            "--dest is not served: a checkpoint lies on its node below the worker's --checkpoints, "
            "in a folder named by its id",
            "leave --dest out; the id that is printed is what a restore asks for",
        )
    if (given["container"] is None) is (given["pod"] is None):
        raise click.UsageError("name either a CONTAINER or, with --pod, a pod")
    alien = _NOT_FOR_CONTAINERS if given["pod"] is None else _NOT_FOR_PODS
    for name in alien:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            rule = "goes only with" if given["pod"] is None else "does not go with"
            raise click.UsageError(f"{option} {rule} --pod")


def _mapping(pairs: Sequence[str]) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs]
    for pair, (old, _, new) in zip(pairs, split, strict=True):
        if not old or not new:
            raise click.BadParameter(f"{pair!r} is not OLD=NEW, two UUIDs of GPUs")
    return {old: new for old, _, new in split}


def _request(of: type[Any], given: dict[str, Any]) -> Request:
    fields = {name: given[name] for name in of.__struct_fields__ if given[name] is not None}
    try:
        request: Request = msgspec.convert(fields | {"kind": _kind(of)}, of)
    except msgspec.ValidationError as error:
        raise click.UsageError(f"what was given does not fit: {misfit(error)}") from error
    return request


def _kind(of: type[Request]) -> str:
    return str(of.__struct_config__.tag)


def _order(request: Request, given: dict[str, Any]) -> None:
    connection = Connection(given["servers"], given["token"])
    id = str(uuid.uuid4())
    with trace.command(id) as headers:
        action = _asked(connection, id, request, headers)
        if given["wait"]:
            action = _followed(connection, action)
    _print(action, given["output"])
    if action.failure or action.state is ActionState.CANCELLED:
        raise _ended_badly(action)


def _asked(connection: Connection, id: str, request: Request, headers: Mapping[str, str]) -> Action:
    try:
        return connection.order(id, request, headers)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted; action {id} may have been asked for already",
            f"`kybernate describe action {id}` tells, `kybernate cancel {id}` ends it",
        ) from error


def _followed(connection: Connection, action: Action) -> Action:
    try:
        with display() as shown:
            shown.show(action)
            lost = partial(_tell_lost, shown)
            for seen in connection.watch(action.id, lost=lost):
                action = seen
                shown.show(seen)
    except Unreachable as error:
        raise Unreachable(
            f"{error.message}; what became of action {action.id} is not known",
            f"{error.advice}; `kybernate describe action {action.id}` tells then",
        ) from error
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted; action {action.id} goes on",
            f"`kybernate cancel {action.id}` ends it, "
            f"`kybernate describe action {action.id}` shows how far it is",
        ) from error
    return action


def _tell_lost(shown: Display, silent: Unreachable) -> None:
    shown.remark(
        f"{silent.message}; asking on for up to {UNREACHABLE_FOR:.0f} s, what was begun goes on"
    )


def _ended_badly(action: Action) -> Stop:
    if action.failure:
        return failed(action.failure, f"{action.kind} (action {action.id})")
    return Failed(f"action {action.id} was cancelled")


def _print(action: Action, output: str) -> None:
    if output == "json":
        click.echo(msgspec.json.encode(action))
    elif action.state is ActionState.COMPLETED:
        click.echo(_outcome(action))
    elif action.state is ActionState.CANCELLED:
        click.echo(f"{action.id}  cancelled")
    elif not action.ended:
        click.echo(action.id)


def _outcome(action: Action) -> str:
    took = text.seconds(action.updated - action.created)
    match action.result:
        case Checkpointed(checkpoint=facts):
            target = text.subject(facts.parts, facts.pod)
            after = "runs on" if facts.left_running else "stopped"
            return f"{facts.id}  {target} {after}, {text.size(facts.size)}, {took}"
        case Restored(target=target, pid=pid):
            return f"{target.namespace}/{target.container}  runs again, pid {pid}, {took}"
        case _:
            return f"{action.order.checkpoint}  deleted, {took}"
