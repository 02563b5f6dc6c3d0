"""The routes of Cedana's propagator under /v1 and /v2, for clients that speak it already.

On a single host a pod is a container of containerd: `pod_id` is its id and so is `pod_name`. An
action id is a checkpoint id too, since every checkpoint has the id of the action that made it.
"""

import asyncio
import re
import uuid
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from controller import propagator_views as views
from controller.http import answer, body_of, query_of
from controller.propagator_types import (
    ActionsQuery,
    CheckpointPod,
    Deprecated,
    NewCluster,
    PodAction,
    PodCheckpoint,
    PodStatus,
    RestorePod,
    User,
)
from controller.refusals import Refused
from controller.routes import Route
from controller.service import Service
from schemas import reasons
from schemas.actions import Action, ActionState
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.nodes import Inventory
from schemas.orders import Identifier
from schemas.requests import (
    DEFAULT_NAMESPACE,
    CheckpointRequest,
    DeleteRequest,
    RestoreRequest,
    misfit,
)

PREFIXES: Final = ("/v1", "/v2")
DELETE_SECONDS: Final = 60.0
_LONGEST_NAME: Final = 76
_RESTORED: Final = re.compile(r"-restored-[0-9a-f]{8}$")
_IDS: Final = uuid.uuid5(uuid.NAMESPACE_URL, "kybernate.io")


class Propagator:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def checkpoint_pod(self, request: web.Request) -> web.Response:
        asked: CheckpointPod = await body_of(request, CheckpointPod)
        action = await self._service.request(_checkpoint_request(asked), labels=_labels(asked))
        return answer(action.id)

    async def restore_pod(self, request: web.Request) -> web.Response:
        asked: RestorePod = await body_of(request, RestorePod)
        entry = await self._service.checkpoint(asked.action_id)
        key = str(uuid.uuid4())
        name = asked.overrides.pod_name if asked.overrides else None
        restore = RestoreRequest(
            checkpoint=entry.facts.id,
            name=_identifier(name, "overrides.pod_name") if name else _restored_name(entry, key),
        )
        action = await self._service.request(restore, key=key, labels=_labels(asked))
        return answer(action.id)

    async def status(self, request: web.Request) -> web.Response:
        action = request.match_info["action_id"]
        try:
            return answer(views.status_of(await self._service.action(action)))
        except Refused as error:
            missing = PodStatus(status="not_found", action_id=action, details=str(error))
            return answer(missing, HTTPStatus.NOT_FOUND)

    async def actions(self, request: web.Request) -> web.Response:
        query: ActionsQuery = query_of(request, ActionsQuery)
        actions, entries, nodes = await asyncio.gather(
            self._service.actions(), self._entries(), self._nodes()
        )
        return answer(
            [
                views.action_of(action, entries.get(action.order.checkpoint), nodes)
                for action in actions
                if _wanted(action, query)
            ]
        )

    async def from_pod(self, request: web.Request) -> web.Response:
        pod = request.match_info["pod_id"]
        latest = views.latest_of_pod(await self._service.actions(), pod)
        if latest is None:
            raise Refused(reasons.UNKNOWN_ACTION, f"there is no action of pod {pod!r}")
        return web.Response(text=latest.id)

    async def deprecate(self, request: web.Request) -> web.Response:
        checkpoint = request.match_info["checkpoint_id"]
        entry = await self._service.checkpoint(checkpoint)
        if entry.state is not CheckpointState.DELETED:
            await self._delete(checkpoint)
        return answer(Deprecated(checkpoint_id=checkpoint, status="deprecated"))

    async def checkpoints(self, _request: web.Request) -> web.Response:
        entries, nodes = await asyncio.gather(self._service.checkpoints(), self._nodes())
        return answer([views.checkpoint_of(entry, nodes) for entry in entries])

    async def create_cluster(self, request: web.Request) -> web.Response:
        """A cluster's id follows from its name; nothing needs to be kept about it."""
        asked: NewCluster = await body_of(request, NewCluster)
        return answer(str(uuid.uuid5(_IDS, f"cluster/{asked.cluster_name}")))

    async def delete_cluster(self, request: web.Request) -> web.Response:
        return answer(request.match_info["id"])

    async def user(self, _request: web.Request) -> web.Response:
        return answer(User(id=str(uuid.uuid5(_IDS, "user")), name="kybernate"))

    async def _delete(self, checkpoint: str) -> None:
        request = DeleteRequest(checkpoint=checkpoint, timeout=DELETE_SECONDS)
        action = await self._service.request(request)
        async for change in self._service.watch(action.id):
            action = change or action
        if action.state is not ActionState.COMPLETED:
            raise _not_deleted(checkpoint, action)

    async def _entries(self) -> dict[str, CatalogueEntry]:
        return {entry.facts.id: entry for entry in await self._service.checkpoints()}

    async def _nodes(self) -> dict[str, Inventory]:
        return {inventory.node: inventory for inventory in await self._service.nodes()}

    def routes(self) -> tuple[Route, ...]:
        return tuple(
            msgspec.structs.replace(route, path=prefix + route.path)
            for prefix in PREFIXES
            for route in (*self._pod_routes(), *self._other_routes())
        )

    def _pod_routes(self) -> tuple[Route, ...]:
        return (
            Route(
                method="POST",
                path="/checkpoint/pod",
                handler=self.checkpoint_pod,
                summary="Checkpoint a pod; the answer is the action's id",
                body=CheckpointPod,
                answer=str,
                refusals=(400, 401, 404, 409, 503),
            ),
            Route(
                method="POST",
                path="/restore/pod",
                handler=self.restore_pod,
                summary="Restore what an action checkpointed; the answer is the new action's id",
                body=RestorePod,
                answer=str,
                refusals=(400, 401, 404, 409, 503),
            ),
            Route(
                method="GET",
                path="/checkpoint/status/{action_id}",
                handler=self.status,
                summary="How far a checkpoint or a restore is; 404 with status not_found",
                answer=PodStatus,
                also=(404,),
                refusals=(401, 503),
            ),
            Route(
                method="GET",
                path="/actions",
                handler=self.actions,
                summary="Checkpoints and restores that were asked for",
                query=ActionsQuery,
                answer=list[PodAction],
                refusals=(400, 401, 503),
            ),
            Route(
                method="GET",
                path="/actions/from_pod/{pod_id}",
                handler=self.from_pod,
                summary="The id of the latest action of a pod",
                answer=str,
                media="text/plain",
                refusals=(401, 404, 503),
            ),
        )

    def _other_routes(self) -> tuple[Route, ...]:
        return (
            Route(
                method="PATCH",
                path="/checkpoints/deprecate/{checkpoint_id}",
                handler=self.deprecate,
                summary="Delete a checkpoint's files and mark it as deprecated",
                answer=Deprecated,
                refusals=(401, 404, 409, 503),
            ),
            Route(
                method="GET",
                path="/checkpoints",
                handler=self.checkpoints,
                summary="The catalogue of checkpoints",
                answer=list[PodCheckpoint],
                refusals=(401, 503),
            ),
            Route(
                method="POST",
                path="/cluster",
                handler=self.create_cluster,
                summary="The id of a cluster",
                body=NewCluster,
                answer=str,
                refusals=(400, 401),
            ),
            Route(
                method="DELETE",
                path="/cluster/{id}",
                handler=self.delete_cluster,
                summary="Forget a cluster",
                answer=str,
                refusals=(401,),
            ),
            Route(
                method="GET",
                path="/user",
                handler=self.user,
                summary="Whose token it is",
                answer=User,
                refusals=(401,),
            ),
        )


def _checkpoint_request(asked: CheckpointPod) -> CheckpointRequest:
    if asked.kind == "rootfsonly":
        raise Refused(
            reasons.INVALID_REQUEST,
            "a checkpoint of the root filesystem alone is not supported",
            "use kind `simple` or `rootfs`: both keep the processes and the root filesystem",
        )
    options = asked.overrides.criu_opts if asked.overrides else None
    leave_running = options.leave_running if options else None
    return CheckpointRequest(
        container=_identifier(asked.pod_id or asked.pod_name, "pod_id"),
        namespace=_identifier(asked.namespace or DEFAULT_NAMESPACE, "namespace"),
        leave_running=asked.reason == views.HEARTBEAT if leave_running is None else leave_running,
    )


def _identifier(text: str, field: str) -> str:
    try:
        return msgspec.convert(text, Identifier)
    except msgspec.ValidationError as error:
        raise Refused(
            reasons.INVALID_REQUEST,
            f"{field} {text!r} does not fit: {misfit(error)}",
            "on a single host a pod is a container: send its id",
        ) from error


def _restored_name(entry: CatalogueEntry, key: str) -> str:
    """A new name each time, with the original one and `restored` in it."""
    ending = f"-restored-{key[:8]}"
    original = _RESTORED.sub("", entry.facts.parts[0].target.container)
    return original[: _LONGEST_NAME - len(ending)] + ending


def _labels(asked: CheckpointPod | RestorePod) -> dict[str, str]:
    labels = {views.REASON: asked.reason, views.CLUSTER: asked.cluster_id}
    return {name: text for name, text in labels.items() if text}


def _wanted(action: Action, query: ActionsQuery) -> bool:
    return (
        views.target_of(action) is not None
        and query.type in {None, views.type_of(action)}
        and query.cluster_id in {None, action.labels.get(views.CLUSTER)}
    )


def _not_deleted(checkpoint: str, action: Action) -> Refused:
    if action.failure is None:
        return Refused(
            reasons.NODE_NOT_READY, f"checkpoint {checkpoint} is not deleted yet: ask again"
        )
    failure = action.failure
    return Refused(
        failure.reason,
        f"checkpoint {checkpoint} was not deleted: {failure.message}",
        failure.advice,
    )
