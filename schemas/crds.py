"""CustomResourceDefinitions from the structs of `schemas.kubernetes`, as YAML for `kubectl apply`.

msgspec writes JSON Schema; the API server wants a structural one: nothing referred to, no null
beside a type, no default of null. YAML is written plainly: every text stands in double quotes.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from schemas.kubernetes import (
    GROUP,
    VERSION,
    CheckpointSpec,
    CheckpointStatus,
    KybernateCheckpoint,
    KybernateRestore,
    KybernateWorkload,
    RestoreSpec,
    RestoreStatus,
    WorkloadSpec,
    WorkloadStatus,
)

Json = dict[str, Any]

DROPPED: Final = frozenset({"title", "$defs"})


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """What `kubectl get` shows."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


PHASE: Final = Column(name="Phase", path=".status.phase")
NODE: Final = Column(name="Node", path=".status.nodeName")
DURATION: Final = Column(name="Duration", path=".status.duration")
AGE: Final = Column(name="Age", path=".metadata.creationTimestamp", type="date")
REASON: Final = Column(
    name="Reason", path='.status.conditions[?(@.type=="Ready")].reason', priority=1
)


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of resource."""

    kind: type[msgspec.Struct]
    spec: type[msgspec.Struct]
    status: type[msgspec.Struct]
    short: str
    columns: tuple[Column, ...]

    @property
    def singular(self) -> str:
        return self.kind.__name__.lower()

    @property
    def plural(self) -> str:
        return f"{self.singular}s"


DEFINITIONS: Final = (
    Definition(
        kind=KybernateCheckpoint,
        spec=CheckpointSpec,
        status=CheckpointStatus,
        short="kyc",
        columns=(
            PHASE,
            Column(name="Pod", path=".spec.podName"),
            NODE,
            Column(name="Size", path=".status.checkpointSize"),
            DURATION,
            AGE,
            REASON,
        ),
    ),
    Definition(
        kind=KybernateRestore,
        spec=RestoreSpec,
        status=RestoreStatus,
        short="kyr",
        columns=(
            PHASE,
            Column(name="Pod", path=".status.restoredPodName"),
            NODE,
            DURATION,
            AGE,
            REASON,
        ),
    ),
    Definition(
        kind=KybernateWorkload,
        spec=WorkloadSpec,
        status=WorkloadStatus,
        short="kyw",
        columns=(
            PHASE,
            Column(name="Replicas", path=".status.activeReplicas", type="integer"),
            AGE,
            REASON,
        ),
    ),
)


def crds() -> Iterator[tuple[str, str]]:
    """File names and their YAML."""
    for definition in DEFINITIONS:
        name = f"{GROUP}_{definition.plural}.yaml"
        yield name, "".join(f"{line}\n" for line in _yaml(_crd(definition)))


def _crd(definition: Definition) -> Json:
    names = {
        "kind": definition.kind.__name__,
        "listKind": f"{definition.kind.__name__}List",
        "singular": definition.singular,
        "plural": definition.plural,
        "shortNames": [definition.short],
        "categories": ["kybernate"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{definition.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": names,
            "versions": [_version(definition)],
        },
    }


def _version(definition: Definition) -> Json:
    schema = {
        "type": "object",
        "description": definition.kind.__doc__,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(definition.spec),
            "status": structural(definition.status),
        },
    }
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(column) for column in definition.columns],
        "schema": {"openAPIV3Schema": schema},
    }


def _column(column: Column) -> Json:
    told: Json = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return told | ({"priority": column.priority} if column.priority else {})


def structural(of: type[msgspec.Struct]) -> Json:
    """The structural schema of a struct."""
    schema = msgspec.json.schema(of)
    return _plain(schema, schema["$defs"])


def _plain(schema: Json, known: Json) -> Json:
    told = {key: value for key, value in schema.items() if key not in DROPPED}
    if (name := told.pop("$ref", None)) is not None:
        told = _plain(known[name.rpartition("/")[2]], known) | told
    told = _without_null(told, known)
    told = _with_default(told)
    for key in ("items", "additionalProperties"):
        if isinstance(told.get(key), dict):
            told[key] = _plain(told[key], known)
    if "properties" in told:
        told["properties"] = {name: _plain(one, known) for name, one in told["properties"].items()}
    return _completed(told)


def _without_null(schema: Json, known: Json) -> Json:
    """What may be absent is absent, never null."""
    choices = schema.get("anyOf", ())
    kept = [choice for choice in choices if choice != {"type": "null"}]
    if len(kept) == len(choices):
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return _plain(kept[0], known) | rest


def _with_default(schema: Json) -> Json:
    """An object starts empty and is filled by its fields' defaults; nothing needs no default."""
    default = schema.pop("default", None)
    if "properties" in schema and default is not None:
        return {**schema, "default": {}}
    if default is None or default in ("", [], {}):
        return schema
    return {**schema, "default": default}


def _completed(schema: Json) -> Json:
    """With what JSON Schema leaves open and a structural schema must say."""
    if not schema.get("required", True):
        del schema["required"]
    if "enum" in schema:
        schema.setdefault("type", "string")
    if schema == {} or (schema.get("type") == "object" and _says_nothing(schema)):
        return {**schema, "type": "object", "x-kubernetes-preserve-unknown-fields": True}
    if schema.get("type") == "integer":
        schema.setdefault("format", "int64")
    if "lastTransitionTime" in schema.get("items", {}).get("properties", {}):
        return {**schema, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return schema


def _says_nothing(schema: Json) -> bool:
    return "properties" not in schema and not schema.get("additionalProperties")


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Lines of a mapping or a list in block style."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _entry(f"{indent}{key}:", one, indent + "  ")
    else:
        for one in value:
            lines = _yaml(one, indent + "  ") if _is_block(one) else iter([_scalar(one)])
            first = next(lines).strip() if _is_block(one) else next(lines)
            yield f"{indent}- {first}"
            yield from lines


def _entry(head: str, value: Any, indent: str) -> Iterator[str]:
    if not _is_block(value):
        yield f"{head} {_scalar(value)}"
        return
    yield head
    yield from _yaml(value, indent)


def _is_block(value: Any) -> bool:
    return isinstance(value, dict | list) and bool(value)


def _scalar(value: Any) -> str:
    """JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)
