"""What has to be right before NATS is asked: servers' URLs, certificates and keys.

A mistake in them does not mend itself, so a service that begins with one ends with words. A file
that becomes unreadable later, while certificates are exchanged, is met by trying again.
"""

import ssl
from typing import Final
from urllib.parse import urlsplit

from kybernate.bus.port import BusSettings
from kybernate.problems import CannotServe

SCHEMES: Final = frozenset({"nats", "tls", "ws", "wss"})


def check(settings: BusSettings) -> None:
    """Raise CannotServe for what can never work."""
    for server in settings.servers:
        _check_server(server)
    if not settings.servers:
        raise CannotServe("no NATS server is named; name one with --nats")
    if settings.tls_key and not settings.tls_cert:
        raise CannotServe("--nats-key is of no use without --nats-cert; name the certificate, too")
    try:
        tls_context(settings)
    except OSError as error:
        files = (settings.tls_ca, settings.tls_cert, settings.tls_key)
        named = ", ".join(str(file) for file in files if file)
        raise CannotServe(
            f"the certificates for NATS cannot be used ({named}): {error}; "
            "see --nats-ca, --nats-cert and --nats-key: PEM files, the key without a passphrase"
        ) from error


def tls_context(settings: BusSettings) -> ssl.SSLContext | None:
    if not (settings.tls_ca or settings.tls_cert):
        return None
    context = ssl.create_default_context(cafile=settings.tls_ca)
    if settings.tls_cert:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
    return context


def _check_server(server: str) -> None:
    try:
        url = urlsplit(server if "://" in server else f"nats://{server}")
        good = url.scheme in SCHEMES and bool(url.hostname) and url.port != 0
    except ValueError:
        good = False
    if not good or any(sign.isspace() for sign in server):
        raise CannotServe(
            f"{without_secrets(server)!r} is no NATS server; write nats://HOST:PORT or "
            "tls://HOST:PORT (--nats)"
        )


def without_secrets(server: str) -> str:
    before, at, host = server.rpartition("@")
    return f"{before.partition('://')[0]}://…@{host}" if at else server
