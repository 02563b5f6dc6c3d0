"""The command line's way to the controllers' REST API: blocking, and on the standard library's
HTTP client, because importing an asynchronous one takes longer than most commands.

Several servers are tried in order. Asking twice is harmless: every order carries the id of its
action as its idempotency key.
"""

import http.client
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from kybernate.cli.exits import Failed, Refused, Stop, Unreachable
from schemas.actions import Action
from schemas.base import decoder
from schemas.nodes import DeletedNode
from schemas.requests import Problem, Request

T = TypeVar("T")

CALL_TIMEOUT = 15.0
SILENCE_TIMEOUT = 30.0
"""A watch that says nothing for so long is asked again."""
UNREACHABLE_FOR = 60.0
"""While waiting for an action: how long no controller may answer."""
TOLD_AFTER = 2
"""How many tries to watch an action fail before that is told."""
UNAVAILABLE = http.client.SERVICE_UNAVAILABLE

_BROKEN = (OSError, UnicodeError, http.client.HTTPException)


class Connection:
    """Calls to whichever of the servers answers."""

    def __init__(self, servers: tuple[str, ...], token: str | None) -> None:
        self._servers = list(servers)
        self._token = token

    def get(self, path: str, of: type[T]) -> T:
        return _decoded(self._call("GET", path), of)

    def order(self, action: str, request: Request, headers: Mapping[str, str]) -> Action:
        body = msgspec.json.encode(request)
        headers = {"Idempotency-Key": action, "Content-Type": "application/json", **headers}
        return _decoded(self._call("POST", "/api/v1/actions", body, headers), Action)

    def cancel(self, action: str) -> Action:
        return _decoded(self._call("POST", f"/api/v1/actions/{segment(action)}/cancel"), Action)

    def delete_node(self, node: str) -> DeletedNode:
        return _decoded(self._call("DELETE", f"/api/v1/nodes/{segment(node)}"), DeletedNode)

    def watch(self, action: str, *, lost: Callable[[Unreachable], None]) -> Iterator[Action]:
        """The action at every change up to its end, through any number of broken connections.

        `lost` is told when the next try finds nobody either: that takes longer than a change of
        servers.
        """
        failures, lost_at = 0, 0.0
        while True:
            try:
                for seen in self._watch_once(action):
                    failures = 0
                    yield seen
                    if seen.ended:
                        return
            except (*_BROKEN, Unreachable) as error:
                failures += 1
                lost_at = time.monotonic() if failures == 1 else lost_at
                silent = _silent(self._servers, error)
                if time.monotonic() - lost_at > UNREACHABLE_FOR:
                    raise silent from error
                if failures == TOLD_AFTER:
                    lost(silent)
            time.sleep(random.uniform(0.2, 1.0))  # noqa: S311 - spreads clients, guards nothing

    def _watch_once(self, action: str) -> Iterator[Action]:
        path = f"/api/v1/actions/{segment(action)}/watch"
        with self._answer("GET", path, timeout=SILENCE_TIMEOUT) as answer:
            while line := answer.readline():
                if line.strip():
                    yield _decoded(line, Action)

    def _call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> bytes:
        with self._answer(method, path, body, headers) as answer:
            return answer.read()

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = {},
        timeout: float = CALL_TIMEOUT,
    ) -> Iterator[http.client.HTTPResponse]:
        link, answer = self._reach(method, path, body, self._headers(headers), timeout)
        try:
            if answer.status >= http.client.BAD_REQUEST:
                raise refused(answer.status, answer.read())
            yield answer
        finally:
            link.close()

    def _reach(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str | bytes],
        timeout: float,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        problems, advice = [], ""
        for server in tuple(self._servers):
            link = _link(server, timeout)
            try:
                link.request(method, urlsplit(server).path.rstrip("/") + path, body, headers)
                answer = link.getresponse()
                if answer.status != UNAVAILABLE:
                    self._prefer(server)
                    return link, answer
                told = refused(answer.status, answer.read())
                problem, advice = told.message, told.advice
            except _BROKEN as error:
                problem = str(error) or type(error).__name__
            problems.append(f"{server}: {problem}")
            link.close()
        raise unreachable("; ".join(problems), advice)

    def _headers(self, more: Mapping[str, str]) -> dict[str, str | bytes]:
        shown = f"Bearer {self._token}".encode()  # a header of text would be limited to Latin-1
        authorization = {"Authorization": shown} if self._token else {}
        return {"Accept": "application/json", **authorization, **more}

    def _prefer(self, server: str) -> None:
        self._servers.remove(server)
        self._servers.insert(0, server)


_START = (
    "start one (`kybernate up` for this host alone), or name a running one with "
    "--server or KYBERNATE_SERVER"
)
_ADVICE = {
    "CERTIFICATE_VERIFY_FAILED": "name the authority of its certificate in SSL_CERT_FILE, "
    "and the host as the certificate does",
    "WRONG_VERSION_NUMBER": "it speaks no TLS: write http:// instead of https://",
}


def unreachable(problems: str, told: str = "") -> Unreachable:
    """`told`: what a controller advises that answers, and cannot do more than that."""
    if told:
        return Unreachable(f"no controller can serve this now: {problems}", told)
    advice = next((words for sign, words in _ADVICE.items() if sign in problems), _START)
    return Unreachable(f"no controller answers at {problems}", advice)


def _silent(servers: list[str], error: Exception) -> Unreachable:
    if isinstance(error, Unreachable):
        return error
    return unreachable(f"{', '.join(servers)}: {str(error) or type(error).__name__}")


def refused(status: int, body: bytes) -> Stop:
    try:
        problem = decoder(Problem).decode(body)
    except msgspec.DecodeError:
        text = body[:200].decode(errors="replace").strip()
        problem = Problem(
            message=f"the server answered {status}: {text}",
            advice="see that --server names a Kybernate controller",
        )
    reason = f" ({problem.reason})" if problem.reason else ""
    kind = Failed if status >= http.client.INTERNAL_SERVER_ERROR else Refused
    return kind(problem.message + reason, problem.advice)


def segment(text: str) -> str:
    return quote(text, safe="")


def _link(server: str, timeout: float) -> http.client.HTTPConnection:
    url = urlsplit(server)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname or "", url.port, timeout=timeout)


def _decoded(body: bytes, of: type[T]) -> T:
    try:
        return decoder(of).decode(body)
    except msgspec.DecodeError as error:
        raise Failed(
            f"the server's answer cannot be read: {error}",
            "see that --server names a Kybernate controller of this version",
        ) from error
