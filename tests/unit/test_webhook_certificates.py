"""The webhook's certificate: made, found good or due, trusted across a renewal, served anew."""

import asyncio
import base64
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from controller.kube.certificates import Identity, is_due, is_trusted, issue
from controller.kube.client import SECRETS, WEBHOOKS, Json, Missing, Resource, Taken
from controller.kube.trust import Trust, identity_in, reached_at

DAY = 24 * 3600.0
NOW = 1_800_000_000.0
HOST = "localhost"


def made(
    *names: str, now: float = NOW, lifetime: float = 90 * DAY, before: Identity | None = None
) -> Identity:
    return issue(names or (HOST,), now=now, lifetime=lifetime, before=before)


def test_it_is_good_for_two_thirds_of_its_life() -> None:
    identity = made()

    assert not is_due(identity, [HOST], now=NOW)
    assert not is_due(identity, [HOST], now=NOW + 59 * DAY)
    assert is_due(identity, [HOST], now=NOW + 61 * DAY)


def test_it_is_made_for_the_hosts_that_are_called() -> None:
    assert is_due(made(), ["10.0.0.1"], now=NOW)
    assert not is_due(
        made("10.0.0.1", "fd00::1", "a.b.svc"), ["10.0.0.1", "fd00::1", "a.b.svc"], now=NOW
    )


@pytest.mark.parametrize("field", ["certificate", "key", "authorities"])
def test_what_does_not_belong_together_is_replaced(field: str) -> None:
    one, other = made(), made()
    for foreign in (getattr(other, field), b"", b"nothing of the kind"):
        mixed = msgspec.structs.replace(one, **{field: foreign})
        assert is_due(mixed, [HOST], now=NOW)


def test_the_one_before_stays_trusted_and_only_that() -> None:
    first = made()
    second = made(before=first)
    third = made(before=second)

    assert is_trusted(first, by=second.authorities)
    assert is_trusted(second, by=third.authorities)
    assert not is_trusted(first, by=third.authorities)
    assert not is_trusted(second, by=first.authorities)
    assert not is_trusted(first, by=b"")


class Shelf:
    """The API server, as far as a Secret and a configuration go."""

    def __init__(self, **client: Any) -> None:
        config = client or {"url": f"https://{HOST}:1/admit"}
        self.objects: dict[str, Json] = {
            SECRETS.plural: {"metadata": {"namespace": "kybernate", "resourceVersion": "1"}},
            WEBHOOKS.plural: {
                "metadata": {"resourceVersion": "1"},
                "webhooks": [{"name": "pods", "clientConfig": config}],
            },
        }

    async def get(self, resource: Resource, _namespace: str, _name: str) -> Json | None:
        await asyncio.sleep(0)
        return self.objects.get(resource.plural)

    async def patch(self, resource: Resource, _namespace: str, _name: str, body: Json) -> Json:
        await asyncio.sleep(0)
        there = self.objects[resource.plural]
        version = there["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != version:
            raise Taken("it was changed")
        metadata = there["metadata"] | {"resourceVersion": str(int(version) + 1)}
        self.objects[resource.plural] = there | body | {"metadata": metadata}
        return self.objects[resource.plural]

    def identity(self) -> Identity:
        identity = identity_in(self.objects[SECRETS.plural])
        assert identity
        return identity


class Clock:
    """Behind, so that what is made later is good by now."""

    def __init__(self) -> None:
        self.now = time.time() - 0.7 * DAY

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def serving(trust: Trust) -> AsyncIterator[int]:
    """The port of a server that says one word with whatever certificate there is."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()
        with suppress(OSError):  # the client has gone
            await writer.wait_closed()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=trust.tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def hears(port: int, shelf: Shelf) -> bool:
    """Whether an API server with this configuration can call."""
    client = shelf.objects[WEBHOOKS.plural]["webhooks"][0]["clientConfig"]
    trusted = base64.b64decode(client["caBundle"]).decode()
    tls = ssl.create_default_context(cadata=trusted)
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=tls, server_hostname=HOST
        )
    except ssl.SSLError:
        return False
    heard = await reader.read()
    writer.close()
    await writer.wait_closed()
    return heard == b"hello"


async def test_the_first_round_is_enough_to_be_called() -> None:
    shelf = Shelf()
    trust = Trust(shelf, lifetime=DAY)  # type: ignore[arg-type]
    async with serving(trust) as port:
        await trust.round()

        assert await hears(port, shelf)


async def test_controllers_that_start_at_once_come_to_one_certificate() -> None:
    shelf = Shelf()
    trusts = [Trust(shelf, lifetime=DAY) for _ in range(4)]  # type: ignore[arg-type]
    await asyncio.gather(*(trust.round() for trust in trusts))

    assert shelf.objects[SECRETS.plural]["metadata"]["resourceVersion"] == "2"
    for trust in trusts:
        async with serving(trust) as port:
            assert await hears(port, shelf)


async def test_a_renewal_is_trusted_before_anybody_serves_it() -> None:
    shelf, clock = Shelf(), Clock()
    one, other = (Trust(shelf, lifetime=DAY, clock=clock) for _ in range(2))  # type: ignore[arg-type]
    async with serving(one) as port, serving(other) as second:
        await one.round()
        await other.round()
        first = shelf.identity()
        clock.now += 0.7 * DAY
        await one.round()
        renewed = shelf.identity()

        assert renewed != first
        assert await served(port) == await served(second)  # as before, and trusted still
        assert await hears(port, shelf)
        assert await hears(second, shelf)
        await one.round()
        assert await served(port) != await served(second)
        assert await hears(port, shelf)
        assert await hears(second, shelf)
        await other.round()
        assert await served(port) == await served(second)
        await one.round()
        assert shelf.identity() == renewed


async def served(port: int) -> bytes:
    """The certificate that is shown."""
    text = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
    return text.encode()


async def test_what_somebody_overwrote_is_mended() -> None:
    shelf = Shelf()
    trust = Trust(shelf, lifetime=DAY)  # type: ignore[arg-type]
    await trust.round()
    client = shelf.objects[WEBHOOKS.plural]["webhooks"][0]["clientConfig"]
    shelf.objects[WEBHOOKS.plural]["webhooks"] = [{"clientConfig": client | {"caBundle": ""}}]
    async with serving(trust) as port:
        await trust.round()

        assert await hears(port, shelf)


async def test_what_is_missing_is_named() -> None:
    shelf = Shelf()
    del shelf.objects[SECRETS.plural]
    with pytest.raises(Missing, match="deploy/base"):
        await Trust(shelf, lifetime=DAY).round()  # type: ignore[arg-type]


def test_the_hosts_are_those_of_the_configuration() -> None:
    def at(**client: Any) -> Any:
        return reached_at(Shelf(**client).objects[WEBHOOKS.plural])

    service = {"namespace": "ours", "name": "webhook"}
    assert at(service=service) == ("ours", ["webhook.ours.svc"])
    assert at(url="https://10.0.0.1:9443/admit") == ("kybernate", ["10.0.0.1"])
    assert at(url="https://[fd00::1]:9443/admit") == ("kybernate", ["fd00::1"])
