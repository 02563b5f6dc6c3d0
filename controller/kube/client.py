"""The API server: the only module that imports kubernetes_asyncio.

Objects are plain JSON here; who needs more of them decodes them. Every request has a time-out, and
a watch ends by itself, so that a connection that is cut off is noticed.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from kubernetes_asyncio import config
from kubernetes_asyncio.client import ApiClient, Configuration

from kybernate.problems import CannotServe, Expected
from schemas.base import decoder
from schemas.kubernetes import GROUP, VERSION

Json = dict[str, Any]
Query = list[tuple[str, str]]

REQUEST_SECONDS: Final = 15.0
WATCH_SECONDS: Final = 60
WATCH_SILENCE_SECONDS: Final = WATCH_SECONDS + 10.0
"""A watch that lasts longer without a word has lost its connection."""
CONNECT_SECONDS: Final = 5.0
MERGE: Final = "application/merge-patch+json"
CONFLICT, GONE, NOT_FOUND = 409, 410, 404
FIRST_REFUSAL: Final = 400


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of object, by its place in the API."""

    api: str
    plural: str

    def path(self, namespace: str = "", name: str = "", part: str = "") -> str:
        within = f"namespaces/{namespace}" if namespace else ""
        return "/".join(word for word in (self.api, within, self.plural, name, part) if word)


PODS: Final = Resource(api="/api/v1", plural="pods")
EVENTS: Final = Resource(api="/api/v1", plural="events")
NODES: Final = Resource(api="/api/v1", plural="nodes")
SECRETS: Final = Resource(api="/api/v1", plural="secrets")
WEBHOOKS: Final = Resource(
    api="/apis/admissionregistration.k8s.io/v1", plural="mutatingwebhookconfigurations"
)
CHECKPOINTS: Final = Resource(api=f"/apis/{GROUP}/{VERSION}", plural="kybernatecheckpoints")
RESTORES: Final = Resource(api=f"/apis/{GROUP}/{VERSION}", plural="kybernaterestores")


class KubeProblem(Expected):
    """The API server does not do what is asked."""


class KubeUnavailable(KubeProblem):
    """It does not answer; asking again later may help."""


class KubeRefused(KubeProblem):
    """It says no, in words."""


class Missing(KubeRefused):
    """There is no such object."""


class Taken(KubeRefused):
    """There is one of this name already, or it was changed since it was read."""


class Expired(KubeRefused):
    """The version to watch from is too old: list again."""


REFUSALS: Final[Mapping[int, type[KubeRefused]]] = {
    NOT_FOUND: Missing,
    CONFLICT: Taken,
    GONE: Expired,
}


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Json


class Kube:
    def __init__(self, api: ApiClient) -> None:
        self._api = api

    async def listed(
        self, resource: Resource, *, namespace: str = "", selector: str = ""
    ) -> tuple[list[Json], str]:
        """All of them, in one namespace or in all, and the version to watch from."""
        query = [("labelSelector", selector)] if selector else []
        found = await self._ask("GET", resource.path(namespace), query=query)
        return found["items"], found["metadata"]["resourceVersion"]

    async def get(self, resource: Resource, namespace: str, name: str) -> Json | None:
        try:
            return await self._ask("GET", resource.path(namespace, name))
        except Missing:
            return None

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        return await self._ask("POST", resource.path(namespace), body=body)

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json, *, part: str = ""
    ) -> Json:
        """Merge; with a resourceVersion in it only as long as nobody else wrote."""
        path = resource.path(namespace, name, part)
        return await self._ask("PATCH", path, body=body, content=MERGE)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, grace: int | None = None
    ) -> None:
        """Delete the one with this UID; fine when it is gone. `grace`: a pod's, in seconds."""
        body: Json = {"preconditions": {"uid": uid}}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            await self._ask("DELETE", resource.path(namespace, name), body=body)
        except (Missing, Taken):  # gone, or another of that name by now
            return

    async def watch(
        self, resource: Resource, version: str, *, selector: str = ""
    ) -> AsyncIterator[Change]:
        """Changes since `version`, for about a minute; Expired when it is too old."""
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(WATCH_SECONDS)),
            *([("labelSelector", selector)] if selector else []),
        ]
        patience = aiohttp.ClientTimeout(
            sock_connect=CONNECT_SECONDS, sock_read=WATCH_SILENCE_SECONDS
        )
        try:
            async with self._request("GET", resource.path(), query, timeout=patience) as answer:
                async for line in answer.content:
                    yield _change(line)
        except (aiohttp.ClientError, OSError) as error:
            raise _unavailable(error) from error

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Json | None = None,
        content: str = "application/json",
    ) -> Json:
        try:
            async with self._request(method, path, query or [], body=body, content=content) as got:
                answer: Json = json.loads(await got.read())
        except (aiohttp.ClientError, OSError) as error:
            raise _unavailable(error) from error
        return answer

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Query,
        *,
        body: Json | None = None,
        content: str = "application/json",
        timeout: float | aiohttp.ClientTimeout = REQUEST_SECONDS,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        response: aiohttp.ClientResponse = await self._api.call_api(
            path,
            method,
            query_params=query,
            header_params={"Accept": "application/json", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=timeout,
        )
        async with response:
            if response.status >= FIRST_REFUSAL:
                raise _refusal(response.status, await response.text())
            yield response


@asynccontextmanager
async def connect(kubeconfig: Path | None) -> AsyncIterator[Kube]:
    """By the file; without one, as a pod of the cluster or as kubectl would."""
    settings = Configuration()
    file = str(kubeconfig) if kubeconfig else None
    try:
        if file is None and Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists():
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(config_file=file, client_configuration=settings)
    except Exception as error:  # what a file of another kind ends in is not limited
        raise CannotServe(
            f"the Kubernetes API cannot be reached: {error}; name a kubeconfig with --kubeconfig"
        ) from error
    async with ApiClient(settings) as api:
        yield Kube(api)


def _change(line: bytes) -> Change:
    change = decoder(Change).decode(line)
    if change.type == "ERROR":
        raise _refusal(change.object.get("code", 0), json.dumps(change.object))
    return change


def _refusal(status: int, text: str) -> KubeProblem:
    try:
        words = str(json.loads(text).get("message") or text)
    except (ValueError, AttributeError):
        words = text
    if status >= 500 or status == 429:  # noqa: PLR2004 - HTTP's own numbers
        return KubeUnavailable(f"the API server answers {status}: {words}")
    return REFUSALS.get(status, KubeRefused)(words)


def _unavailable(error: Exception) -> KubeUnavailable:
    words = str(error) or type(error).__name__
    return KubeUnavailable(f"the API server does not answer: {words}")
