"""Commands that only look: `get` lists, `describe` shows one thing in full."""

from collections.abc import Callable, Iterable
from typing import Any

import click
import msgspec

from kybernate.cli import options, progress, text
from kybernate.cli.connection import Connection, segment
from schemas.actions import Action, ActionState
from schemas.checkpoints import CatalogueEntry, Heir
from schemas.failures import Failure
from schemas.manifest import PartFacts
from schemas.messages import Checkpointed, Restored
from schemas.nodes import SILENT_AFTER_SECONDS, Inventory
from schemas.orders import CheckpointOrder, RestoreOrder


@click.group()
def get() -> None:
    """List actions, checkpoints or nodes."""


@click.group()
def describe() -> None:
    """Show one action, checkpoint or node in full."""


def _looking(command: Callable[..., Any]) -> Callable[..., Any]:
    return options.connected(options.output(command))


@get.command("actions")
@click.option("--kind", type=click.Choice(["checkpoint", "restore", "delete"]))
@click.option("--state", type=click.Choice([state.value for state in ActionState]))
@_looking
def get_actions(kind: str | None, state: str | None, **given: Any) -> None:
    """List actions, the latest first."""
    wanted = "&".join(
        f"{name}={value}" for name, value in (("kind", kind), ("state", state)) if value
    )
    actions = _connection(given).get("/api/v1/actions?" + wanted, tuple[Action, ...])
    latest_first = sorted(actions, key=lambda action: -action.created)
    head = ("ID", "KIND", "SUBJECT", "NODE", "STATE", "TOOK", "AGE", "REASON")
    _show(given, latest_first, head, map(_action_row, latest_first))


@get.command("checkpoints")
@_looking
def get_checkpoints(**given: Any) -> None:
    """List checkpoints, the latest first."""
    entries = _connection(given).get("/api/v1/checkpoints", tuple[CatalogueEntry, ...])
    latest_first = sorted(entries, key=lambda entry: -entry.facts.created)
    head = ("ID", "CONTAINER", "NODE", "STATE", "SIZE", "GPUS", "PLACE", "AGE")
    _show(given, latest_first, head, map(_checkpoint_row, latest_first))


@get.command("nodes")
@_looking
def get_nodes(**given: Any) -> None:
    """List nodes."""
    nodes = _connection(given).get("/api/v1/nodes", tuple[Inventory, ...])
    by_name = sorted(nodes, key=lambda node: node.node)
    head = ("NAME", "READY", "CONTAINERS", "GPUS", "DISK FREE", "MEMORY FREE", "HEARTBEAT")
    _show(given, by_name, head, map(_node_row, by_name))


@describe.command("action")
@click.argument("action", metavar="ID")
@_looking
def describe_action(action: str, **given: Any) -> None:
    """Show what became of the action ID, step by step."""
    found = _connection(given).get(f"/api/v1/actions/{segment(action)}", Action)
    _tell(given, found, _action_text(found))


@describe.command("checkpoint")
@click.argument("checkpoint", metavar="ID")
@_looking
def describe_checkpoint(checkpoint: str, **given: Any) -> None:
    """Show what the checkpoint ID holds and where it is."""
    found = _connection(given).get(f"/api/v1/checkpoints/{segment(checkpoint)}", CatalogueEntry)
    _tell(given, found, _checkpoint_text(found))


@describe.command("node")
@click.argument("node", metavar="NAME")
@_looking
def describe_node(node: str, **given: Any) -> None:
    """Show the node NAME as its worker sees it."""
    found = _connection(given).get(f"/api/v1/nodes/{segment(node)}", Inventory)
    _tell(given, found, _node_text(found))


def _connection(given: dict[str, Any]) -> Connection:
    return Connection(given["servers"], given["token"])


def _show(
    given: dict[str, Any], records: object, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]
) -> None:
    _tell(given, records, text.columns(head, rows))


def _tell(given: dict[str, Any], record: object, words: str) -> None:
    click.echo(msgspec.json.encode(record) if given["output"] == "json" else words)


def _action_row(action: Action) -> tuple[str, ...]:
    took = text.seconds(action.updated - action.created) if action.ended else ""
    reason = action.failure.reason if action.failure else ""
    return (
        action.id,
        action.kind,
        _subject(action),
        action.node,
        action.state,
        took,
        text.age(action.created),
        reason,
    )


def _subject(action: Action) -> str:
    match action.order:
        case CheckpointOrder(parts=parts, pod=pod):
            return text.subject(parts, pod)
        case RestoreOrder(target=target):
            return f"{target.namespace}/{target.container}"
        case order:
            return order.checkpoint


def _checkpoint_row(entry: CatalogueEntry) -> tuple[str, ...]:
    facts = entry.facts
    return (
        facts.id,
        text.subject(facts.parts, facts.pod),
        facts.node,
        entry.state,
        text.size(facts.size),
        str(len(facts.gpus)),
        facts.place,
        text.age(facts.created),
    )


def _node_row(node: Inventory) -> tuple[str, ...]:
    age = text.age(node.at)
    return (
        node.node,
        _readiness(node),
        str(len(node.containers)),
        str(len(node.gpus)),
        text.size(node.free_disk_bytes),
        text.size(node.free_memory_bytes),
        f"{age} ago",
    )


def _readiness(node: Inventory) -> str:
    if text.passed(node.at) > SILENT_AFTER_SECONDS:
        return "silent"
    return "yes" if node.ready else "no"


def _action_text(action: Action) -> str:
    pairs = [
        ("Action", action.id),
        ("Kind", action.kind),
        ("Subject", _subject(action)),
        ("Node", action.node),
        ("State", action.state + (", cancel requested" if action.cancel_requested else "")),
        ("Attempt", str(action.attempt)),
        ("Created", text.moment(action.created)),
        ("Updated", text.moment(action.updated)),
        ("Deadline", text.moment(action.deadline)),
        ("Trace", action.traceparent),
        ("Result", _result(action)),
    ]
    parts = [text.facts(pairs)]
    if action.steps:
        parts.append("Steps:\n" + "\n".join(map(progress.line, action.steps)))
    if action.failure:
        parts.append("Failure:\n" + _failure_text(action.failure))
    parts.extend(
        f"Failure of an earlier attempt:\n{_failure_text(failure)}"
        for failure in action.earlier_failures
    )
    return "\n".join(parts)


def _result(action: Action) -> str:
    match action.result:
        case Checkpointed(checkpoint=facts):
            return f"checkpoint {facts.id}, {text.size(facts.size)}"
        case Restored(target=target, pid=pid):
            return f"{target.namespace}/{target.container} runs again, pid {pid}"
        case None:
            return ""
        case deleted:
            return f"checkpoint {deleted.checkpoint} deleted"


def _failure_text(failure: Failure) -> str:
    pairs = [
        ("  Reason", failure.reason),
        ("  Step", failure.step),
        ("  Message", failure.message),
        ("  What to do", failure.advice),
    ]
    return text.facts(pairs)


def _checkpoint_text(entry: CatalogueEntry) -> str:
    facts = entry.facts
    pairs = [
        ("Checkpoint", facts.id),
        ("Pod", text.subject(facts.parts, facts.pod) if facts.pod else ""),
        ("Node", facts.node),
        ("State", entry.state),
        ("Problem", entry.problem),
        ("Place", facts.place),
        ("Created", text.moment(facts.created)),
        ("Size", text.size(facts.size)),
        ("Memory", text.size(facts.memory_bytes) if facts.memory_bytes else ""),
        ("Left running", "yes" if facts.left_running else "no"),
        ("Inherited by", _heir(entry.heir) if entry.heir else ""),
        ("Digest", facts.digest),
        ("Trace", facts.traceparent),
    ]
    gpus = [(f"GPU {gpu.index}", f"{gpu.model}, {gpu.uuid}") for gpu in facts.gpus]
    return text.facts(pairs + gpus + [pair for part in facts.parts for pair in _part(part)])


def _part(part: PartFacts) -> list[tuple[str, str]]:
    own = f"{part.target.namespace}/{part.target.container}"
    name = "" if part.name == part.target.container else f"{part.name}, "
    return [("Container", f"{name}{own}"), ("Image", part.image)]


def _heir(heir: Heir) -> str:
    return f"pod {heir.pod or 'not seen yet'}{'' if heir.started else ', which has not run yet'}"


def _node_text(node: Inventory) -> str:
    pairs = [
        ("Node", node.node),
        ("Ready", _readiness(node)),
        ("Problem", node.problem),
        ("Heartbeat", f"{text.age(node.at)} ago"),
        ("Up since", text.moment(node.started)),
        ("Worker", f"{node.worker_version}, instance {node.instance}"),
        ("Architecture", node.host.architecture),
        ("Kernel", node.host.kernel),
        ("CPU", node.host.cpu_model),
        ("containerd", node.host.containerd),
        ("CRIU", node.host.criu),
        ("Disk free", text.size(node.free_disk_bytes)),
        ("Memory free", text.size(node.free_memory_bytes)),
        ("At work", ", ".join(node.running)),
    ]
    gpus = [
        (f"GPU {gpu.index}", f"{gpu.model}, {text.size(gpu.memory_bytes)}, {gpu.uuid}")
        for gpu in node.gpus
    ]
    containers = [("Container", f"{one.namespace}/{one.container}") for one in node.containers]
    warnings = [("Warning", f"{one.message} ({one.reason})") for one in node.warnings]
    return text.facts(pairs + gpus + containers + warnings)
