"""The definitions of the custom resources are structural, and every field is explained."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from schemas import crds
from schemas.crds import DEFINITIONS, structural


def fields(schema: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield at, schema
    for name, one in schema.get("properties", {}).items():
        yield from fields(one, f"{at}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from fields(schema[key], f"{at}[]")


SCHEMAS = [one for definition in DEFINITIONS for one in (definition.spec, definition.status)]


@pytest.mark.parametrize("of", SCHEMAS, ids=lambda of: of.__name__)
def test_schemas_are_structural(of: type[msgspec.Struct]) -> None:
    for path, schema in fields(structural(of)):
        assert "$ref" not in schema, path
        assert "type" in schema or "x-kubernetes-int-or-string" in schema, path
        assert schema.get("default", "") is not None, path
        if "." in path and not path.endswith("]"):
            assert schema.get("description"), path


def test_what_is_fixed_by_the_contract_is_there() -> None:
    spec = structural(DEFINITIONS[0].spec)

    assert spec["required"] == ["podName"]
    assert spec["properties"]["timeout"]["default"] == 600
    assert spec["properties"]["storage"]["properties"]["type"]["enum"] == ["local", "peer", "s3"]
    restore = structural(DEFINITIONS[1].spec)
    assert restore["properties"]["targetPod"]["properties"].keys() == {
        *("name", "nodeSelector", "nodeName", "resources")
    }
    workload = structural(DEFINITIONS[2].spec)
    template = workload["properties"]["template"]
    assert template["required"] == ["spec"]
    spec = template["properties"]["spec"]
    assert spec["required"] == ["containers"]
    assert spec["x-kubernetes-preserve-unknown-fields"] is True


def test_the_yaml_is_plain() -> None:
    files = dict(crds.crds())

    assert len(files) == 3
    for text in files.values():
        assert text.startswith('apiVersion: "apiextensions.k8s.io/v1"\n')
        assert all(line.strip() and "\t" not in line for line in text.splitlines())
