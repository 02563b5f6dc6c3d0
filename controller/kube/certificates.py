"""The webhook's certificate: signed by an authority of its own, whose key is forgotten at once.

The only module that imports cryptography. It makes and reads certificates, and keeps none.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY: Final = "kybernate-webhook-authority"
EARLIER: Final = timedelta(minutes=10)
"""Clocks of other machines may be behind."""
RENEWED_AT: Final = 2 / 3
"""Part of its life after which a certificate is replaced."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """All in PEM."""

    certificate: bytes
    key: bytes
    authorities: bytes
    """Who signed it, and behind that who signed the one before."""


def issue(
    names: Sequence[str], *, now: float, lifetime: float, before: Identity | None
) -> Identity:
    """A new certificate for these hosts; the one before goes on being trusted."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_id = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    signer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id)
    authority = (
        _draft(AUTHORITY, authority_key, now, lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(authority_id, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    hosts = x509.SubjectAlternativeName([_general(name) for name in names])
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        _draft("kybernate-webhook", key, now, lifetime)
        .add_extension(hosts, critical=False)
        .add_extension(server, critical=False)
        .add_extension(signer, critical=False)  # both authorities have the same name
        .sign(authority_key, hashes.SHA256())
    )
    trusted = [authority, *(_authorities(before.authorities)[:1] if before else ())]
    return Identity(
        certificate=certificate.public_bytes(Encoding.PEM),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        authorities=b"".join(one.public_bytes(Encoding.PEM) for one in trusted),
    )


def is_due(identity: Identity, names: Sequence[str], *, now: float) -> bool:
    """Whether another one is needed: soon too old, of other hosts, or of no use at all."""
    try:
        certificate = x509.load_pem_x509_certificate(identity.certificate)
        key = load_pem_private_key(identity.key, password=None)
        certificate.verify_directly_issued_by(_authorities(identity.authorities)[0])
    except (ValueError, TypeError, IndexError, InvalidSignature):
        return True
    begin = (certificate.not_valid_before_utc + EARLIER).timestamp()
    end = certificate.not_valid_after_utc.timestamp()
    return (
        key.public_key() != certificate.public_key()
        or now > begin + (end - begin) * RENEWED_AT
        or _hosts(certificate) != {_general(name) for name in names}
    )


def is_trusted(identity: Identity, by: bytes) -> bool:
    """Whether who trusts these authorities trusts the certificate."""
    return _authorities(identity.authorities)[0] in _authorities(by)


def _draft(
    name: str, key: ec.EllipticCurvePrivateKey, now: float, lifetime: float
) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(now, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(AUTHORITY))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - EARLIER)
        .not_valid_after(start + timedelta(seconds=lifetime))
    )


def _authorities(pem: bytes) -> list[x509.Certificate]:
    """None where there is nothing that can be read."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        return []


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _hosts(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return set(found.value)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
