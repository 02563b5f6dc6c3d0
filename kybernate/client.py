"""The controllers' REST API for asynchronous programs, through whichever controller answers.

Asking twice is harmless: every request carries the id of its action as its idempotency key. A
watch goes on at another controller when the one it hangs on goes away.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from kybernate import telemetry
from kybernate.tasks import jittered
from schemas.actions import Action
from schemas.base import decoder
from schemas.checkpoints import CatalogueEntry
from schemas.nodes import DeletedNode, Inventory
from schemas.requests import Problem, Request

T = TypeVar("T")

CALL_SECONDS: Final = 15.0
SILENCE_SECONDS: Final = 30.0
"""A watch that says nothing for so long is asked again."""
UNREACHABLE_SECONDS: Final = 60.0
"""How long a watch goes on looking for a controller that answers."""
AGAIN_SECONDS: Final = 0.2
_UNAVAILABLE: Final = 503
_ERRORS: Final = 400
_BROKEN: Final = (aiohttp.ClientError, TimeoutError, OSError)


class ClientProblem(Exception):
    """What a controller answered instead of what was asked for."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.message = problem.message
        self.reason = problem.reason
        self.advice = problem.advice


class Unreachable(ClientProblem):
    """No controller answers."""


class Client:
    """Made by `client`; the servers are tried in order, and the one that answered comes first."""

    def __init__(
        self, session: aiohttp.ClientSession, servers: Sequence[str], token: str | None
    ) -> None:
        self._session = session
        self._servers = [server.rstrip("/") for server in servers]
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def request(self, request: Request, *, action: str | None = None) -> Action:
        """Ask for something; `action` is the id it gets (default: a new one)."""
        headers = {"Idempotency-Key": action or str(uuid.uuid4())}
        body = msgspec.json.encode(request)
        return await self._call("POST", "/api/v1/actions", Action, body=body, headers=headers)

    async def cancel(self, action: str) -> Action:
        return await self._call("POST", f"/api/v1/actions/{_segment(action)}/cancel", Action)

    async def action(self, action: str) -> Action:
        return await self._call("GET", f"/api/v1/actions/{_segment(action)}", Action)

    async def actions(self) -> list[Action]:
        return await self._call("GET", "/api/v1/actions", list[Action])

    async def checkpoint(self, checkpoint: str) -> CatalogueEntry:
        path = f"/api/v1/checkpoints/{_segment(checkpoint)}"
        return await self._call("GET", path, CatalogueEntry)

    async def checkpoints(self) -> list[CatalogueEntry]:
        return await self._call("GET", "/api/v1/checkpoints", list[CatalogueEntry])

    async def node(self, node: str) -> Inventory:
        return await self._call("GET", f"/api/v1/nodes/{_segment(node)}", Inventory)

    async def nodes(self) -> list[Inventory]:
        return await self._call("GET", "/api/v1/nodes", list[Inventory])

    async def delete_node(self, node: str) -> DeletedNode:
        return await self._call("DELETE", f"/api/v1/nodes/{_segment(node)}", DeletedNode)

    async def ended(self, action: str) -> Action:
        """The action once it has ended."""
        newest = None
        async for seen in self.watch(action):
            newest = seen
        if newest is None:
            raise AssertionError("a watch ends with the end of its action")
        return newest

    async def watch(self, action: str) -> AsyncIterator[Action]:
        """The action at every change up to its end, through any number of broken connections."""
        lost: float | None = None
        ended = False
        while not ended:
            try:
                async for seen in self._watch_once(action):
                    lost, ended = None, seen.ended
                    yield seen
            except (*_BROKEN, Unreachable) as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > UNREACHABLE_SECONDS:
                    raise self._unreachable(str(error)) from error
            if not ended:
                await asyncio.sleep(jittered(AGAIN_SECONDS))

    async def _watch_once(self, action: str) -> AsyncIterator[Action]:
        path = f"/api/v1/actions/{_segment(action)}/watch"
        patience = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS)
        async with self._answer("GET", path, timeout=patience) as answer:
            async for line in answer.content:
                if line.strip():
                    yield decoder(Action).decode(line)

    async def _call(
        self,
        method: str,
        path: str,
        of: type[T],
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> T:
        patience = aiohttp.ClientTimeout(total=CALL_SECONDS)
        more = headers or {}
        async with self._answer(method, path, body=body, headers=more, timeout=patience) as answer:
            return decoder(of).decode(await answer.read())

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        sent = telemetry.inject({**self._headers, **(headers or {})})
        problem = ""
        for server in tuple(self._servers):
            try:
                answer = await self._session.request(
                    method, server + path, data=body, headers=sent, timeout=timeout
                )
            except _BROKEN as error:
                problem = str(error) or type(error).__name__
                continue
            async with answer:
                if answer.status == _UNAVAILABLE:
                    problem = (await _problem(answer)).message
                    continue
                if answer.status >= _ERRORS:
                    raise ClientProblem(await _problem(answer))
                self._prefer(server)
                yield answer
                return
        raise self._unreachable(problem)

    def _prefer(self, server: str) -> None:
        self._servers.remove(server)
        self._servers.insert(0, server)

    def _unreachable(self, problem: str) -> Unreachable:
        return Unreachable(
            Problem(
                message=f"no controller answers at {', '.join(self._servers)}: {problem}",
                advice="start one, or name one that runs",
            )
        )


@asynccontextmanager
async def client(servers: Sequence[str], *, token: str | None = None) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(session, servers, token)


async def _problem(answer: aiohttp.ClientResponse) -> Problem:
    body = await answer.read()
    try:
        return decoder(Problem).decode(body)
    except msgspec.DecodeError:
        text = body[:200].decode(errors="replace").strip()
        return Problem(message=f"{answer.url} answered {answer.status}: {text}")


def _segment(text: str) -> str:
    return quote(text, safe="")
