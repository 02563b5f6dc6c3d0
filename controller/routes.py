"""Routes as data: what is served is what /openapi.json describes."""

from typing import Any

import msgspec

from controller.http import Handler


class Route(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    path: str
    handler: Handler
    summary: str
    body: Any = None
    """The type of the request's body."""
    query: type[msgspec.Struct] | None = None
    """A struct with one field per parameter of the query."""
    headers: tuple[str, ...] = ()
    """Optional headers that mean something."""
    answer: Any = None
    """The type of a good answer's body."""
    status: int = 200
    also: tuple[int, ...] = ()
    """Further statuses that come with a good answer's body."""
    media: str = "application/json"
    refusals: tuple[int, ...] = ()
    """Further statuses that the route answers with a Problem."""
    open: bool = False
    """No token is asked for."""
