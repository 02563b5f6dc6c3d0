"""The project's own REST API: handlers and their routes."""

from contextlib import suppress
from http import HTTPStatus
from typing import Final, Literal

import msgspec
from aiohttp import web

from controller.http import answer, body_of, query_of
from controller.refusals import Refused
from controller.routes import Route
from controller.service import UUID, Service
from schemas import reasons
from schemas.actions import Action, ActionState
from schemas.checkpoints import CatalogueEntry
from schemas.nodes import DeletedNode, Inventory
from schemas.requests import Request

PREFIX: Final = "/api/v1"
NDJSON: Final = "application/x-ndjson"
KEY_HEADER: Final = "Idempotency-Key"


class ActionsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["checkpoint", "restore", "delete"] | None = None
    state: ActionState | None = None


class Api:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def post_action(self, request: web.Request) -> web.Response:
        asked: Request = await body_of(request, Request)
        action = await self._service.request(asked, key=_key_of(request))
        return answer(action, HTTPStatus.ACCEPTED)

    async def get_actions(self, request: web.Request) -> web.Response:
        query: ActionsQuery = query_of(request, ActionsQuery)
        return answer(await self._service.actions(kind=query.kind, state=query.state))

    async def get_action(self, request: web.Request) -> web.Response:
        return answer(await self._service.action(request.match_info["id"]))

    async def cancel(self, request: web.Request) -> web.Response:
        action = await self._service.cancel(request.match_info["id"])
        return answer(action, HTTPStatus.ACCEPTED)

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """One line per change; an empty one now and then, so that silence means a broken line."""
        changes = self._service.watch(request.match_info["id"])
        first = await anext(changes)
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await response.prepare(request)
        with suppress(ConnectionResetError, Refused):  # the client left, or the action was lost
            await response.write(_line(first))
            async for change in changes:
                if change is not None and change.ended:
                    await response.write_eof(_line(change))
                    break
                await response.write(_line(change))
            else:
                await response.write_eof()
        return response

    async def get_checkpoints(self, _request: web.Request) -> web.Response:
        return answer(await self._service.checkpoints())

    async def get_checkpoint(self, request: web.Request) -> web.Response:
        return answer(await self._service.checkpoint(request.match_info["id"]))

    async def get_nodes(self, _request: web.Request) -> web.Response:
        return answer(await self._service.nodes())

    async def get_node(self, request: web.Request) -> web.Response:
        return answer(await self._service.node(request.match_info["name"]))

    async def delete_node(self, request: web.Request) -> web.Response:
        return answer(await self._service.delete_node(request.match_info["name"]))

    def routes(self) -> tuple[Route, ...]:
        return (*self._action_routes(), *self._other_routes())

    def _action_routes(self) -> tuple[Route, ...]:
        actions = f"{PREFIX}/actions"
        return (
            Route(
                method="POST",
                path=actions,
                handler=self.post_action,
                summary="Ask for a checkpoint, a restore, or a checkpoint's deletion",
                body=Request,
                headers=(KEY_HEADER, "traceparent"),
                answer=Action,
                status=HTTPStatus.ACCEPTED,
                refusals=(400, 401, 404, 409, 413, 503),
            ),
            Route(
                method="GET",
                path=actions,
                handler=self.get_actions,
                summary="All actions, oldest first",
                query=ActionsQuery,
                answer=list[Action],
                refusals=(400, 401, 503),
            ),
            Route(
                method="GET",
                path=f"{actions}/{{id}}",
                handler=self.get_action,
                summary="One action",
                answer=Action,
                refusals=(401, 404, 503),
            ),
            Route(
                method="GET",
                path=f"{actions}/{{id}}/watch",
                handler=self.watch,
                summary="The action now and at every change up to its end, one line each",
                answer=Action,
                media=NDJSON,
                refusals=(401, 404, 503),
            ),
            Route(
                method="POST",
                path=f"{actions}/{{id}}/cancel",
                handler=self.cancel,
                summary="Wish an action to end; its node undoes what is not durable yet",
                answer=Action,
                status=HTTPStatus.ACCEPTED,
                refusals=(401, 404, 409, 503),
            ),
        )

    def _other_routes(self) -> tuple[Route, ...]:
        return (
            Route(
                method="GET",
                path=f"{PREFIX}/checkpoints",
                handler=self.get_checkpoints,
                summary="The catalogue of checkpoints, oldest first",
                answer=list[CatalogueEntry],
                refusals=(401, 503),
            ),
            Route(
                method="GET",
                path=f"{PREFIX}/checkpoints/{{id}}",
                handler=self.get_checkpoint,
                summary="One checkpoint",
                answer=CatalogueEntry,
                refusals=(401, 404, 503),
            ),
            Route(
                method="GET",
                path=f"{PREFIX}/nodes",
                handler=self.get_nodes,
                summary="All nodes as they last described themselves",
                answer=list[Inventory],
                refusals=(401, 503),
            ),
            Route(
                method="GET",
                path=f"{PREFIX}/nodes/{{name}}",
                handler=self.get_node,
                summary="One node",
                answer=Inventory,
                refusals=(401, 404, 503),
            ),
            Route(
                method="DELETE",
                path=f"{PREFIX}/nodes/{{name}}",
                handler=self.delete_node,
                summary="Forget a node whose worker does not report any more",
                answer=DeletedNode,
                refusals=(401, 404, 409, 503),
            ),
        )


def _key_of(request: web.Request) -> str | None:
    key = request.headers.get(KEY_HEADER)
    if key is None or UUID.fullmatch(key):
        return key
    raise Refused(
        reasons.INVALID_REQUEST,
        f"the {KEY_HEADER} {key!r} is no UUID in lower case",
        "it becomes the action's id: send a new UUID with each new request",
    )


def _line(change: Action | None) -> bytes:
    return b"\n" if change is None else msgspec.json.encode(change) + b"\n"
