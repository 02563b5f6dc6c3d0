"""Certificates, credentials and permissions, with the configuration that is shipped."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import msgspec
import nkeys
import pytest

from kybernate.bus import Bus, BusSettings, BusUnavailable, NotPermitted
from kybernate.bus.nats import connect
from kybernate.embedded.nats_server import NatsServer, nats_server
from schemas.messages import Cancel, Claim
from schemas.names import (
    ACTIONS_BUCKET,
    CHECKPOINTS_BUCKET,
    NODES_BUCKET,
    cancel_subject,
    claim_subject,
    event_subject,
    job_subject,
    node_key,
)
from tests.support.secured_nats import Authority, shipped_server

NODE = "gpu-7"


class Note(msgspec.Struct, frozen=True):
    text: str = ""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("tls") / "ca")
    authority.issue("server", "nats", "subjectAltName=IP:127.0.0.1")
    authority.issue("controller", "kybernate-controller")
    authority.issue("worker", f"kybernate-worker-{NODE}")
    authority.issue("stranger", "somebody")
    return authority


@pytest.fixture
async def server(authority: Authority, folder: Path) -> AsyncIterator[NatsServer]:
    async with shipped_server(authority, folder) as server:
        yield server


def settings(server: NatsServer, authority: Authority, who: str) -> BusSettings:
    return BusSettings(
        servers=(server.url,),
        tls_ca=authority.ca,
        tls_cert=authority.folder / f"{who}.pem",
        tls_key=authority.folder / f"{who}.key",
    )


@pytest.fixture
async def controller(server: NatsServer, authority: Authority) -> AsyncIterator[Bus]:
    mine = settings(server, authority, "controller")
    async with connect(mine, name="kybernate-controller") as bus:
        await bus.ensure_topology()
        yield bus


@pytest.fixture
async def worker(server: NatsServer, authority: Authority, controller: Bus) -> AsyncIterator[Bus]:
    mine = settings(server, authority, "worker")
    async with connect(mine, name=f"kybernate-worker-{NODE}") as bus:
        yield bus


async def test_a_worker_does_its_work_with_the_shipped_permissions(
    controller: Bus, worker: Bus
) -> None:
    await worker.ensure_queue(NODE)
    await controller.publish(job_subject(NODE, "delete"), Note("job"), dedupe="1")
    [delivery] = await worker.jobs(NODE).fetch(1, wait=5)
    await delivery.keep()
    await delivery.ack()
    await worker.publish(event_subject(NODE, "completed"), Note("event"), dedupe="1")
    [event] = await controller.events().fetch(1, wait=5)
    await event.ack()
    await worker.table(NODES_BUCKET, Note).put(node_key(NODE), Note("inventory"))
    assert set(await controller.table(NODES_BUCKET, Note).all()) == {NODE}
    checkpoints = worker.table(CHECKPOINTS_BUCKET, Note)
    await checkpoints.create("some-id", Note("facts"))
    assert await checkpoints.get("some-id") is not None
    assert set(await checkpoints.all()) == {"some-id"}


async def test_a_worker_hears_cancellations_and_claims_of_its_node(
    controller: Bus, worker: Bus
) -> None:
    async with worker.listen(cancel_subject(NODE)) as cancels:
        await controller.tell(cancel_subject(NODE), Cancel(action="a"))
        assert b'"a"' in await anext(cancels)
    async with worker.listen(claim_subject(NODE)) as claims:
        await worker.tell(claim_subject(NODE), Claim(kind="ask", node=NODE, instance="i"))
        assert b'"ask"' in await anext(claims)


async def test_a_worker_may_do_nothing_to_other_nodes_or_to_actions(worker: Bus) -> None:
    actions = worker.table(ACTIONS_BUCKET, Note)
    forbidden = (
        worker.ensure_topology(),
        worker.ensure_queue("other"),
        worker.jobs("other").fetch(1, wait=1),
        worker.events().fetch(1, wait=1),
        worker.publish(job_subject(NODE, "delete"), Note(), dedupe="1"),
        worker.publish(event_subject("other", "completed"), Note(), dedupe="1"),
        worker.table(NODES_BUCKET, Note).put("other", Note()),
        actions.get("a"),
        actions.put("a", Note()),
        actions.all(),
        actions.delete("a"),
        _listen(worker, cancel_subject("other")),
        _listen(worker, "kybernate.>"),
        _listen(worker, "_INBOX.>"),
    )
    for number, operation in enumerate(forbidden):
        try:
            await operation
        except NotPermitted:
            continue
        pytest.fail(f"number {number} was permitted")
    assert worker.connected


async def _listen(bus: Bus, subject: str) -> None:
    async with bus.listen(subject):
        pass


async def test_an_inbox_under_another_name_is_told_at_once(
    server: NatsServer, authority: Authority
) -> None:
    with pytest.raises(NotPermitted, match=r"(?i)_INBOX"):
        async with connect(settings(server, authority, "worker"), name="kybernate-worker-other"):
            pass


async def test_a_certificate_of_no_user_is_refused(
    server: NatsServer, authority: Authority
) -> None:
    with pytest.raises(NotPermitted):
        async with connect(settings(server, authority, "stranger"), name="stranger"):
            pass


async def test_without_a_certificate_there_is_no_connection(
    server: NatsServer, authority: Authority
) -> None:
    mine = BusSettings(servers=(server.url,), tls_ca=authority.ca)
    async with connect(mine, name="kybernate-controller") as bus:
        assert not bus.connected


async def test_a_server_of_another_authority_is_not_trusted(
    server: NatsServer, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    cert, key = other.issue("controller", "kybernate-controller")
    mine = BusSettings(servers=(server.url,), tls_ca=other.ca, tls_cert=cert, tls_key=key)
    with pytest.raises(NotPermitted, match="certificate"):
        async with connect(mine, name="kybernate-controller"):
            pass


async def test_a_password_may_stand_in_the_url(folder: Path) -> None:
    config = 'authorization { users = [ { user: "k", password: "secret" } ] }'
    async with nats_server(folder / "nats", config=config) as server:
        right, wrong = (server.url.replace("//", f"//k:{word}@") for word in ("secret", "guess"))
        async with connect(BusSettings(servers=(right,)), name="k") as bus:
            await bus.ensure_topology()
        with pytest.raises(NotPermitted):
            async with connect(BusSettings(servers=(wrong,)), name="k"):
                pass


class Jwts:
    """Operator, account and user, signed one by the other, as `nsc` makes them."""

    def __init__(self) -> None:
        self._operator = _key_pair(nkeys.PREFIX_BYTE_OPERATOR)
        self._system, self._account = (_key_pair(nkeys.PREFIX_BYTE_ACCOUNT) for _ in range(2))
        self._user = _key_pair(nkeys.PREFIX_BYTE_USER)

    def config(self) -> str:
        system, account = (pair.public_key.decode() for pair in (self._system, self._account))
        operator = _jwt("operator", self._operator, self._operator, system_account=system)
        unlimited = dict.fromkeys(("subs", "conn", "data", "payload", "imports", "exports"), -1)
        limits = unlimited | {"leaf": -1, "wildcards": True}
        stored = limits | {"mem_storage": -1, "disk_storage": -1}
        accounts = {
            system: _jwt("account", self._system, self._operator, limits=limits),
            account: _jwt("account", self._account, self._operator, limits=stored),
        }
        preload = "\n".join(f"{name}: {jwt}" for name, jwt in accounts.items())
        return f"operator: {operator}\nresolver: MEMORY\nresolver_preload: {{\n{preload}\n}}"

    def credentials(self, path: Path) -> Path:
        user = _jwt("user", self._user, self._account, subs=-1, data=-1, payload=-1)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{user}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self._user.seed.decode()}\n"
            "------END USER NKEY SEED------\n"
        )
        return path


def _key_pair(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))


def _jwt(kind: str, subject: nkeys.KeyPair, issuer: nkeys.KeyPair, **nats: object) -> str:
    claims = {
        "jti": sha256(os.urandom(8)).hexdigest(),
        "iat": 1,
        "iss": issuer.public_key.decode(),
        "sub": subject.public_key.decode(),
        "name": kind,
        "nats": {"type": kind, "version": 2, **nats},
    }
    head, body = (_base64(msgspec.json.encode(part)) for part in (_JWT_HEAD, claims))
    return f"{head}.{body}.{_base64(issuer.sign(f'{head}.{body}'.encode()))}"


_JWT_HEAD = {"typ": "JWT", "alg": "ed25519-nkey"}


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture
def jwts() -> Jwts:
    return Jwts()


async def test_a_credentials_file_opens_the_door(jwts: Jwts, folder: Path) -> None:
    async with nats_server(folder / "nats", config=jwts.config()) as server:
        credentials = jwts.credentials(folder / "user.creds")
        mine = BusSettings(servers=(server.url,), credentials=credentials)
        async with connect(mine, name="k") as bus:
            await bus.ensure_topology()
        foreign = Jwts().credentials(folder / "foreign.creds")
        with pytest.raises(NotPermitted):
            async with connect(BusSettings(servers=(server.url,), credentials=foreign), name="k"):
                pass


async def test_credentials_taken_away_and_given_back_are_used_again(folder: Path) -> None:
    """NATS closes such a connection for good; the bus comes back nevertheless."""
    users = 'authorization { users = [ { user: "k", password: "%s" } ] }'
    async with nats_server(folder / "nats", config=users % "one") as server:
        mine = BusSettings(servers=(server.url.replace("//", "//k:one@"),))
        async with connect(mine, name="k") as bus:
            await server.stop()
            async with nats_server(folder / "nats", port=_port(server), config=users % "two"):
                await asyncio.sleep(1)
                assert not bus.connected
            await server.start()
            async with asyncio.timeout(60):
                while not bus.connected:  # noqa: ASYNC110 - as a program would look
                    await asyncio.sleep(0.05)


def _port(server: NatsServer) -> int:
    return int(server.url.rpartition(":")[2])


async def test_a_certificate_that_is_unreadable_for_a_while_is_used_again(
    server: NatsServer, authority: Authority, tmp_path: Path
) -> None:
    mine = settings(server, authority, "controller")
    exchanged, whole = tmp_path / "controller.pem", Path(str(mine.tls_cert)).read_bytes()
    exchanged.write_bytes(whole)
    mine = msgspec.structs.replace(mine, tls_cert=exchanged)
    async with connect(mine, name="kybernate-controller") as bus:
        exchanged.write_text("half of it")
        await server.stop()
        await server.start()
        with pytest.raises(BusUnavailable, match="SSL"):
            await bus.ensure_topology()
        exchanged.write_bytes(whole)
        async with asyncio.timeout(60):
            while not bus.connected:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
        await bus.ensure_topology()
