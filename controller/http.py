"""What every HTTP answer of the controller has in common: records, problems, who may ask, spans."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web
from opentelemetry.trace import SpanKind

from controller.refusals import Refused
from kybernate import telemetry
from kybernate.bus.port import BusProblem, NotPermitted, TooLarge
from schemas import reasons
from schemas.base import Undecodable, decoder
from schemas.requests import Problem, misfit

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES: Final = 64 * 1024
BODY_SECONDS: float = 15.0
"""A client that sends slower, or less than it announced, holds no connection for ever."""
OPEN_TO_ALL: Final = frozenset({"/healthz", "/readyz", "/openapi.json"})

STATUS_OF_REASON: Final = {
    reasons.INVALID_REQUEST: HTTPStatus.BAD_REQUEST,
    reasons.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    reasons.NOT_FOUND: HTTPStatus.NOT_FOUND,
    reasons.UNKNOWN_ACTION: HTTPStatus.NOT_FOUND,
    reasons.UNKNOWN_CHECKPOINT: HTTPStatus.NOT_FOUND,
    reasons.UNKNOWN_CONTAINER: HTTPStatus.NOT_FOUND,
    reasons.UNKNOWN_NODE: HTTPStatus.NOT_FOUND,
    reasons.AMBIGUOUS_NODE: HTTPStatus.CONFLICT,
    reasons.NODE_NOT_READY: HTTPStatus.CONFLICT,
    reasons.NODE_IN_USE: HTTPStatus.CONFLICT,
    reasons.CHECKPOINT_MISSING: HTTPStatus.CONFLICT,
    reasons.CHECKPOINT_IN_USE: HTTPStatus.CONFLICT,
    reasons.ALREADY_ENDED: HTTPStatus.CONFLICT,
    reasons.GPU_MISFIT: HTTPStatus.CONFLICT,
    reasons.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    reasons.BUS_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    reasons.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}

log = logging.getLogger(__name__)


def answer(record: Any, status: int = HTTPStatus.OK) -> web.Response:
    body = msgspec.json.encode(record)
    return web.Response(body=body, status=status, content_type="application/json")


def refusal(problem: Problem, status: int | None = None) -> web.Response:
    fitting = STATUS_OF_REASON.get(problem.reason, HTTPStatus.INTERNAL_SERVER_ERROR)
    response = answer(problem, status or fitting)
    if response.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def body_of(request: web.Request, of: Any) -> Any:
    """The body as a record; Refused with the place and the kind of the mistake."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.read()
    except TimeoutError as error:
        raise Refused(
            reasons.INVALID_REQUEST,
            f"the request's body did not arrive in {BODY_SECONDS:g} s",
            "send as many bytes as Content-Length says",
        ) from error
    except web.RequestPayloadError as error:
        raise Refused(
            reasons.INVALID_REQUEST,
            f"the request's body cannot be read: {error}",
            "send JSON, and headers that say truly how it is encoded",
        ) from error
    try:
        return decoder(of).decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(
            reasons.INVALID_REQUEST,
            f"the request's body does not fit: {misfit(error)}",
            "see /openapi.json for what it may hold",
        ) from error


def query_of(request: web.Request, of: type[Any]) -> Any:
    """The query as a record; Refused when a value does not fit."""
    given = {name: value for name, value in request.query.items() if value}
    try:
        return msgspec.convert(given, of, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(
            reasons.INVALID_REQUEST,
            f"the query does not fit: {error}",
            "see /openapi.json for what it may hold",
        ) from error


@web.middleware
async def spanned(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What asks for something as a span of the client's trace; polling would only fill it up."""
    if request.method == "GET":
        return await handler(request)
    resource = request.match_info.route.resource
    attributes = {
        "http.request.method": request.method,
        "http.route": resource.canonical if resource else request.path,
    }
    with (
        telemetry.continuing(dict(request.headers)),
        telemetry.span(telemetry.SPAN_REQUEST, attributes, kind=SpanKind.SERVER) as span,
    ):
        response = await handler(request)
        span.set_attribute("http.response.status_code", response.status)
        return response


@web.middleware
async def explained(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error becomes a Problem with the fitting status."""
    try:
        return await handler(request)
    except Refused as error:
        return refusal(error.problem)
    except web.HTTPException as error:
        response = refusal(_problem_of_http(request, error), error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except BusProblem as error:
        log.warning("%s %s: %s", request.method, request.path, error)
        return refusal(_problem_of_bus(error))
    except Undecodable as error:
        log.warning("%s %s: %s", request.method, request.path, error)
        return refusal(Problem(message=f"a stored record cannot be read: {error}"))
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return refusal(
            Problem(
                message="the controller failed to answer this",
                reason=reasons.INTERNAL,
                advice="its log says more",
            )
        )


def guarded(tokens: tuple[str, ...]) -> Any:
    """Lets in who shows one of the tokens; everybody but web pages when there are none.

    A page that somebody looks at on this host could otherwise ask for anything in their name.
    """
    accepted = [token.encode() for token in tokens]

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not accepted and request.method != "GET" and "Origin" in request.headers:
            raise Refused(
                reasons.UNAUTHORIZED,
                "a web page asks for this, and nobody needs a token here",
                "give the controller a token (--token) and let the page show it",
            )
        if not accepted or request.path in OPEN_TO_ALL:
            return await handler(request)
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        raw = shown.strip().encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(raw, token) for token in accepted]
        if scheme.lower() != "bearer" or not any(matches):
            raise Refused(
                reasons.UNAUTHORIZED,
                "the request shows no valid bearer token",
                "send `Authorization: Bearer TOKEN`; the command line takes it from "
                "KYBERNATE_TOKEN",
            )
        return await handler(request)

    return guard


def _problem_of_http(request: web.Request, error: web.HTTPException) -> Problem:
    match error.status:
        case HTTPStatus.NOT_FOUND:
            message = f"there is nothing at {request.path}"
            return Problem(message=message, reason=reasons.NOT_FOUND, advice="see /openapi.json")
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            message = f"the request's body is larger than {MAX_BODY_BYTES} bytes"
            return Problem(message=message, reason=reasons.TOO_LARGE)
        case _:
            message = f"{request.method} {request.path}: {error.reason}"
            return Problem(message=message, reason=reasons.INVALID_REQUEST)


def _problem_of_bus(error: BusProblem) -> Problem:
    if isinstance(error, TooLarge):
        return Problem(message=str(error), reason=reasons.TOO_LARGE)
    advice = "see that NATS runs and that the controller reaches it; then ask again"
    if isinstance(error, NotPermitted):
        advice = "see the permissions of the controller's NATS user"
    return Problem(message=str(error), reason=reasons.BUS_UNAVAILABLE, advice=advice)
