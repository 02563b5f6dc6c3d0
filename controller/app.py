"""The controller process: wiring, start and graceful stop."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from controller import http, openapi
from controller.api import Api
from controller.catalogue import Catalogue
from controller.engine import Engine
from controller.events import Events
from controller.machine import STANDARD_RULES, Rules
from controller.nodes import Nodes
from controller.propagator import Propagator
from controller.records import Records
from controller.routes import Route
from controller.service import Service
from controller.settings import ControllerSettings
from controller.sweep import Sweep
from kybernate.bus.nats import connect
from kybernate.bus.port import Bus
from kybernate.problems import CannotServe
from kybernate.tasks import end
from schemas import reasons
from schemas.requests import Problem

STOP_SECONDS = 5.0
"""What requests under way get to end when the controller stops."""

LAST_PORT = 65535

log = logging.getLogger(__name__)


async def run(
    settings: ControllerSettings, *, listening: Callable[[str], None] | None = None
) -> None:
    """Serve until cancelled. `listening` is told the URL once requests are answered."""
    async with (
        connect(settings.bus, name="kybernate-controller") as bus,
        serving(settings, bus) as url,
    ):
        log.info("serving the REST API at %s", url)
        if listening is not None:
            listening(url)
        await asyncio.Event().wait()


@asynccontextmanager
async def serving(
    settings: ControllerSettings, bus: Bus, *, rules: Rules = STANDARD_RULES
) -> AsyncIterator[str]:
    """A whole controller on a bus that is connected; the URL of its REST API."""
    if settings.webhook_listen and not settings.kubernetes:
        raise CannotServe("--webhook-listen is of no use without --kubernetes; add that")
    records, catalogue, nodes = Records(bus), Catalogue(bus), Nodes(bus)
    engine = Engine(bus, records, catalogue, rules=rules)
    service = Service(engine, records, catalogue, nodes)
    async with AsyncExitStack() as stack:
        for work in (
            Events(bus, engine).run(),
            Sweep(bus, engine, records, catalogue, nodes).run(),
        ):
            stack.push_async_callback(end, asyncio.create_task(work))
        if settings.kubernetes:
            await stack.enter_async_context(
                _on_kubernetes(
                    settings,
                    service=service,
                    engine=engine,
                    records=records,
                    catalogue=catalogue,
                    nodes=nodes,
                )
            )
        application = web_application(service, bus, tokens=settings.tokens)
        url = await stack.enter_async_context(
            _listening(settings.listen, application, _tls(settings), flag="--listen")
        )
        stack.callback(records.watchers.close)
        yield url


def web_application(service: Service, bus: Bus, *, tokens: tuple[str, ...] = ()) -> web.Application:
    routes = (*Api(service).routes(), *Propagator(service).routes(), *_own_routes(bus))
    description = openapi.describe(routes)

    async def describe(_request: web.Request) -> web.Response:
        return http.answer(description)

    application = web.Application(
        middlewares=[http.explained, http.guarded(tokens), http.spanned],
        client_max_size=http.MAX_BODY_BYTES,
    )
    for route in routes:
        application.router.add_route(route.method, route.path, route.handler)
    application.router.add_get("/openapi.json", describe)
    return application


def _own_routes(bus: Bus) -> tuple[Route, ...]:
    async def alive(_request: web.Request) -> web.Response:
        return http.answer("ok")

    async def ready(_request: web.Request) -> web.Response:
        if bus.connected:
            return http.answer("ok")
        problem = Problem(message="NATS is not connected", reason=reasons.BUS_UNAVAILABLE)
        return http.refusal(problem)

    return (
        Route(method="GET", path="/healthz", handler=alive, summary="Alive", answer=str, open=True),
        Route(
            method="GET",
            path="/readyz",
            handler=ready,
            summary="Connected to NATS",
            answer=str,
            refusals=(503,),
            open=True,
        ),
    )


@asynccontextmanager
async def _on_kubernetes(
    settings: ControllerSettings,
    *,
    service: Service,
    engine: Engine,
    records: Records,
    catalogue: Catalogue,
    nodes: Nodes,
) -> AsyncIterator[None]:
    from controller.kube import runner  # noqa: PLC0415 - an extra that few install

    connected = runner.connected(
        settings,
        service=service,
        engine=engine,
        records=records,
        catalogue=catalogue,
        nodes=nodes,
    )
    async with connected as (reconciling, webhook), AsyncExitStack() as stack:
        stack.push_async_callback(end, asyncio.create_task(reconciling.run()))
        if webhook is not None:
            stack.push_async_callback(end, asyncio.create_task(webhook.run()))
            listening = _listening(
                settings.webhook_listen, webhook.application, webhook.tls, flag="--webhook-listen"
            )
            log.info("serving the webhook at %s", await stack.enter_async_context(listening))
        yield


@asynccontextmanager
async def _listening(
    where: str, application: web.Application, tls: ssl.SSLContext | None, *, flag: str
) -> AsyncIterator[str]:
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    try:
        host, port = _host_and_port(where)
        site = web.TCPSite(runner, host.strip("[]") or None, port, ssl_context=tls)
        try:
            await site.start()
        except OSError as error:
            raise CannotServe(
                f"cannot listen on {where}: {error.strerror or error}; "
                f"stop what listens there, or choose another address ({flag})"
            ) from error
        scheme, named = "https" if tls else "http", host or "127.0.0.1"
        yield f"{scheme}://{named}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _host_and_port(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > LAST_PORT:
        raise CannotServe(f"{listen!r} is no HOST:PORT; write for example 127.0.0.1:7474")
    return host, int(port)


def _tls(settings: ControllerSettings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as error:
        raise CannotServe(
            f"certificate {settings.tls_cert} and its key cannot be used: {error}; "
            "see --tls-cert and --tls-key"
        ) from error
    return context
