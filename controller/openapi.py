"""The description of the REST API, generated from the routes and the structs they speak."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

import msgspec

from controller.routes import Route
from schemas.requests import Problem

REFERENCE: Final = "#/components/schemas/{name}"
_PARAMETER: Final = re.compile(r"\{(\w+)(?::[^{}]+)?\}")


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    types = _types(routes)
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Kybernate", "version": version("kybernate")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _types(routes: Sequence[Route]) -> list[Any]:
    wanted = [Problem]
    for route in routes:
        wanted += [of for of in (route.body, route.answer) if of is not None]
        if route.query is not None:
            wanted += [field.type for field in msgspec.structs.fields(route.query)]
    return list({repr(of): of for of in wanted}.values())


def _operation(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": _operation_id(route),
        "parameters": _parameters(route, schema_of),
        "responses": _responses(route, schema_of),
        "security": [] if route.open else [{}, {"bearer": []}],
    }
    if route.body is not None:
        content = {"application/json": {"schema": schema_of[repr(route.body)]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _operation_id(route: Route) -> str:
    words = re.findall(r"\w+", _PARAMETER.sub(r"by_\1", route.path))
    return "_".join([route.method.lower(), *words])


def _parameters(route: Route, schema_of: dict[str, Any]) -> list[dict[str, Any]]:
    inside = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    queried = [
        {"name": field.encode_name, "in": "query", "schema": schema_of[repr(field.type)]}
        for field in (msgspec.structs.fields(route.query) if route.query else ())
    ]
    headers = [
        {"name": name, "in": "header", "schema": {"type": "string"}} for name in route.headers
    ]
    return [*inside, *queried, *headers]


def _responses(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    content = {}
    if route.answer is not None:
        content = {"content": {route.media: {"schema": schema_of[repr(route.answer)]}}}
    good = {
        str(status): {"description": HTTPStatus(status).phrase, **content}
        for status in (route.status, *route.also)
    }
    refused = {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": schema_of[repr(Problem)]}},
        }
        for status in route.refusals
    }
    problem = {"schema": schema_of[repr(Problem)]}
    otherwise = {"description": "Refused", "content": {"application/json": problem}}
    return {**good, **refused, "default": otherwise}
