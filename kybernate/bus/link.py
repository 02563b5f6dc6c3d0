"""One connection to NATS that comes back for ever, and requests over it that always end.

A task (`serve`) owns the connection: it opens one, watches it, and opens the next when it is
gone. nats-py's own reconnecting is off: it gives up for good on some errors (an authorisation
that lapsed), and it keeps what is published meanwhile to send it when nobody waits any more.

All requests share one inbox. Whoever waits is told at once when the connection is lost.
"""

import asyncio
import itertools
import logging
import re
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kybernate.bus.opening import tls_context, without_secrets
from kybernate.bus.port import (
    OPERATION_TIMEOUT_SECONDS,
    BusProblem,
    BusSettings,
    BusUnavailable,
    NotPermitted,
    TooLarge,
)
from kybernate.bus.replies import Handler, Replies, fresh
from kybernate.tasks import backoff, end
from schemas.names import node_token

PING_SECONDS = 5
PENDING_BYTES = 32 * 1024 * 1024
"""What may wait to be sent: above it nats-py waits in a way that swallows a cancellation."""

_CLOSE_SECONDS = 2.0
_AGES_SECONDS = 24 * 3600
_WATCH_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
_VIOLATION = re.compile(r'(?i)permissions violation for (?:publish|subscription) to "([^"]+)"')

log = logging.getLogger(__name__)


class LeanClient(Client):
    """nats-py's, with a header parser that takes a quarter of the time."""

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """Each line is a name, a colon and a value; what is no such line is left out."""
        fields = (line.partition(":") for line in raw.decode("utf-8", "replace").split("\r\n"))
        return {name: value.strip() for name, colon, value in fields if colon}


class Listener(msgspec.Struct, eq=False):
    """A subscription that is made again on every new connection."""

    subject: str
    handler: Handler
    subscription: Subscription | None = None


class Link:
    def __init__(self, settings: BusSettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self.inbox = f"_INBOX.{node_token(name)}.{secrets.token_hex(8)}"
        self._client: Client | None = None
        self._changed = asyncio.Condition()
        self._inbox_refused: NotPermitted | None = None
        self._problem: BusProblem = BusUnavailable("NATS was not reached yet")
        self._said: Exception | None = None
        self._flushing: set[asyncio.Task[None]] = set()
        self.replies = Replies(f"{self.inbox}.r")
        self._listeners: set[Listener] = {Listener(f"{self.inbox}.r.*", self.replies.take)}

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    async def serve(self) -> None:
        """Keep the connection: run this in a task for as long as the link is used."""
        servers = itertools.cycle(self._settings.servers)
        failures = 0
        while True:
            try:
                async with self._connection(next(servers)) as client:
                    failures = 0
                    await self._watch(client)
                await self._note(BusUnavailable("NATS has ended the connection"))
            except Exception as error:  # noqa: BLE001 - told, and tried again: nobody else would
                failures += 1
                await self._note(self._problem_of(self._cause(error)))
            await asyncio.sleep(backoff(failures, first=0.1, longest=_LONGEST_PAUSE_SECONDS))

    def _cause(self, error: Exception) -> Exception:
        """What nats-py said on the way, where it only tells that it gave up."""
        vague = isinstance(error, TimeoutError | nats.errors.NoServersError)
        return self._said if vague and self._said else error

    def _problem_of(self, error: Exception) -> BusProblem:
        if isinstance(error, BusProblem):
            return error
        said = _said(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            return NotPermitted(f"the certificate of NATS is not to be trusted: {said}")
        if isinstance(error, nats.errors.AuthorizationError) or "authorization" in said.lower():
            return NotPermitted(f"NATS refuses these credentials: {said}")
        where = ", ".join(map(without_secrets, self._settings.servers))
        return BusUnavailable(f"NATS cannot be reached at {where}: {said}")

    async def ready(self) -> None:
        """Return once connected; raise what is in the way, after the usual time or when told."""
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self.connected or self._refused)
        except TimeoutError:
            raise fresh(self._problem) from None
        if not self.connected:
            raise fresh(self._problem)

    @property
    def _refused(self) -> bool:
        return isinstance(self._problem, NotPermitted)

    async def send(
        self,
        subject: str,
        payload: bytes,
        *,
        reply: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Hand a message to the connection: no promise that it arrives."""
        if not self.connected:
            await self.ready()
        client = self._client
        if client is None:
            raise fresh(self._problem)
        try:
            await client.publish(subject, payload, reply, headers)
        except nats.errors.MaxPayloadError as error:
            raise TooLarge(f"NATS takes no message of {len(payload)} bytes on {subject}") from error
        except nats.errors.Error as error:
            raise BusUnavailable(f"NATS took no message on {subject}: {error}") from error

    async def request(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None
    ) -> Msg:
        """The one reply to a message, whatever its status says."""
        token, wait = self.replies.begin(subject, OPERATION_TIMEOUT_SECONDS)
        try:
            await self.send(subject, payload, reply=wait.reply, headers=headers)
            return await wait.answered
        finally:
            self.replies.finish(token, wait)

    @asynccontextmanager
    async def listening(self, subject: str, handler: Handler) -> AsyncIterator[None]:
        """Messages of a subject go to the handler; the server knows it when the block begins."""
        listener = Listener(subject, handler)
        self._listeners.add(listener)
        try:
            await self.ready()
            await self._subscribed(listener)
            yield
        finally:
            self._listeners.discard(listener)
            await _unsubscribe(listener)

    async def _subscribed(self, listener: Listener) -> None:
        """The server tells a refusal before it answers the flush."""
        client = self._client
        if client is None:
            raise fresh(self._problem)
        with self.replies.waiting(listener.subject, OPERATION_TIMEOUT_SECONDS) as refusal:
            try:
                if listener.subscription is None:
                    await _subscribe(client, listener)
                await self._flush(client)
            except nats.errors.Error as error:
                raise BusUnavailable(f"cannot listen to {listener.subject}: {error}") from error
            if refusal.answered.done():
                await refusal.answered

    @asynccontextmanager
    async def _connection(self, server: str) -> AsyncIterator[Client]:
        client = LeanClient()
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT_SECONDS):
                await self._open(client, server)
            await self._use(client)
            yield client
        finally:
            self._client = None
            await _close(client)
            for flushing in tuple(self._flushing):
                await end(flushing)

    async def _open(self, client: Client, server: str) -> None:
        self._inbox_refused = self._said = None
        for listener in self._listeners:
            listener.subscription = None
        credentials = self._settings.credentials
        await client.connect(
            server,
            name=self._name,
            error_cb=self._on_error,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=2,
            ping_interval=PING_SECONDS,
            inbox_prefix=self.inbox,
            pending_size=PENDING_BYTES,
            skip_subject_validation=True,  # they are made by schemas.names, keys are checked
            user_credentials=str(credentials) if credentials else None,
            tls=tls_context(self._settings),
        )
        for listener in tuple(self._listeners):
            await _subscribe(client, listener)
        await self._flush(client)

    async def _flush(self, client: Client) -> None:
        """Return when the server has seen all that was sent.

        nats-py's first ping may overtake what waits to be sent, so it takes two. Its flush must
        never be cancelled while the connection lives: the pong that comes later ends its reading.
        """

        async def flush() -> None:
            for _ in range(2):
                await client.flush(_AGES_SECONDS)

        flushing = asyncio.create_task(flush())
        self._flushing.add(flushing)
        flushing.add_done_callback(self._flushed)
        await asyncio.wait({flushing}, timeout=OPERATION_TIMEOUT_SECONDS)
        if not flushing.done():
            raise BusUnavailable("NATS does not answer")
        flushing.result()

    def _flushed(self, flushing: asyncio.Task[None]) -> None:
        """Whoever waited may have been cancelled, and then nobody asks how it ended."""
        self._flushing.discard(flushing)
        if not flushing.cancelled() and (error := flushing.exception()):
            log.debug("a flush ended: %s", repr(error))

    async def _use(self, client: Client) -> None:
        if self._inbox_refused:
            raise self._inbox_refused
        async with self._changed:
            self._client = client
            self._problem = BusUnavailable("the connection to NATS was lost")
            self._changed.notify_all()
        log.info("connected to NATS as %s", self._name)

    async def _watch(self, client: Client) -> None:
        """Return when the connection is gone, which pings find out at the latest."""
        while client.is_connected:  # noqa: ASYNC110 - its own word comes late or never
            await asyncio.sleep(_WATCH_SECONDS)

    async def _note(self, problem: BusProblem) -> None:
        """Remember what is wrong and tell it to everybody who waits."""
        repeated = str(problem) == str(self._problem)
        log.log(logging.DEBUG if repeated else logging.WARNING, "%s", problem)
        self.replies.fail(problem)
        async with self._changed:
            self._problem = problem
            self._changed.notify_all()

    async def _on_error(self, error: Exception) -> None:
        violation = _VIOLATION.search(str(error))
        if violation is None:
            self._said = error
            log.debug("NATS: %s", repr(error))
            return
        subject = violation[1]
        problem = NotPermitted(f"NATS refuses {subject} to {self._name}: see deploy/nats/")
        log.debug("%s", problem)
        if subject.lower().startswith(self.inbox.lower()):
            self._inbox_refused = problem
        self.replies.fail(problem, subject=subject)


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    return str(error) or type(error).__name__


async def _subscribe(client: Client, listener: Listener) -> None:
    async def deliver(message: Msg) -> None:
        listener.handler(message)

    listener.subscription = await client.subscribe(listener.subject, cb=deliver)


async def _unsubscribe(listener: Listener) -> None:
    if listener.subscription is not None:
        with suppress(nats.errors.Error):  # the connection is gone, and the subscription with it
            await listener.subscription.unsubscribe()


async def _close(client: Client) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.close()
    except (OSError, TimeoutError, AssertionError, nats.errors.Error) as error:
        log.debug("closing the connection to NATS: %s", error)  # AssertionError: never opened
