"""One certificate for the webhooks of all controllers, and the API server's trust in it.

It lies in a Secret, and every write of it is compare-and-set, so all controllers come to the same
one; who renews it is who is first. A new certificate is served no sooner than its authority was
seen among the trusted ones, where the one before stays until the next.
"""

import base64
import binascii
import logging
import os
import ssl
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import msgspec

from controller.kube.certificates import Identity, is_due, is_trusted, issue
from controller.kube.client import SECRETS, WEBHOOKS, Json, Kube, Missing, Resource, Taken
from kybernate.tasks import for_ever

CONFIGURATION: Final = "kybernate"
SECRET: Final = "kybernate-webhook"  # noqa: S105 - its name
NAMESPACE: Final = "kybernate"
"""Of the Secret, where the API server does not reach the webhook through a service."""
FILES: Final = {"certificate": "tls.crt", "key": "tls.key", "authorities": "ca.crt"}
ROUND_SECONDS: Final = 20.0
LOOKS: Final = 20
"""At least so many rounds in the life of a certificate."""
TRIES: Final = 5

log = logging.getLogger(__name__)


class Trust:
    def __init__(
        self, kube: Kube, *, lifetime: float, clock: Callable[[], float] = time.time
    ) -> None:
        """`lifetime`: a new certificate's, in seconds."""
        self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        """Nobody can connect before the first round."""
        self._kube = kube
        self._lifetime = lifetime
        self._clock = clock
        self._served: Identity | None = None

    async def run(self) -> None:
        pause = min(ROUND_SECONDS, self._lifetime / LOOKS)
        await for_ever(self.round, name="keeping the webhook's certificate", pause=pause)

    async def round(self) -> None:
        """Renew the certificate when it is time, have it trusted, then serve it."""
        for _ in range(TRIES):
            try:
                return await self._round()
            except Taken:  # another controller was faster: see what it made
                continue
        raise Taken(f"others wrote {SECRET} or {CONFIGURATION} {TRIES} times in a row")

    async def _round(self) -> None:
        configuration = await self._read(WEBHOOKS, "", CONFIGURATION)
        namespace, hosts = reached_at(configuration)
        secret = await self._read(SECRETS, namespace, SECRET)
        identity = identity_in(secret)
        if identity is None or is_due(identity, hosts, now=self._clock()):
            identity = await self._renew(secret, hosts, identity)
        was_trusted = await self._have_trusted(configuration, identity)
        if identity != self._served and (was_trusted or self._served is None):
            _load(self.tls, identity)
            self._served = identity

    async def _read(self, resource: Resource, namespace: str, name: str) -> Json:
        found = await self._kube.get(resource, namespace, name)
        if found is None:
            raise Missing(f"there is no {name} among the {resource.plural}: apply deploy/base")
        return found

    async def _renew(self, secret: Json, hosts: list[str], before: Identity | None) -> Identity:
        identity = issue(hosts, now=self._clock(), lifetime=self._lifetime, before=before)
        texts = msgspec.structs.asdict(identity)
        data = {file: base64.b64encode(texts[field]).decode() for field, file in FILES.items()}
        await self._kube.patch(
            SECRETS, secret["metadata"]["namespace"], SECRET, _changed(secret, data=data)
        )
        log.info("made a certificate of the webhook for %s", ", ".join(hosts))
        return identity

    async def _have_trusted(self, configuration: Json, identity: Identity) -> bool:
        """Whether it was already."""
        wanted = base64.b64encode(identity.authorities).decode()
        webhooks = configuration["webhooks"]
        trusted = [one["clientConfig"].get("caBundle", "") for one in webhooks]
        if any(one != wanted for one in trusted):
            changed = [
                one | {"clientConfig": one["clientConfig"] | {"caBundle": wanted}}
                for one in webhooks
            ]
            body = _changed(configuration, webhooks=changed)
            await self._kube.patch(WEBHOOKS, "", CONFIGURATION, body)
        return all(is_trusted(identity, by=base64.b64decode(one)) for one in trusted)


def reached_at(configuration: Json) -> tuple[str, list[str]]:
    """The Secret's namespace, and the hosts by which the API server calls the webhook."""
    client = configuration["webhooks"][0]["clientConfig"]
    if (service := client.get("service")) is None:
        return NAMESPACE, [urlsplit(client["url"]).hostname or ""]
    return service["namespace"], [f"{service['name']}.{service['namespace']}.svc"]


def identity_in(secret: Json) -> Identity | None:
    data = secret.get("data") or {}
    try:
        texts = {field: base64.b64decode(data[file]) for field, file in FILES.items()}
    except (KeyError, binascii.Error):
        return None
    return Identity(**texts)


def _changed(one: Json, **fields: object) -> Json:
    """Only as long as nobody else wrote."""
    return {"metadata": {"resourceVersion": one["metadata"]["resourceVersion"]}, **fields}


def _load(tls: ssl.SSLContext, identity: Identity) -> None:
    """For connections from now on. OpenSSL wants a file; this one is in memory only."""
    file = os.memfd_create("kybernate-webhook")
    try:
        os.write(file, identity.certificate + identity.key)
        tls.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
