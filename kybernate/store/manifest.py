"""Writing and reading `manifest.json`, the one file that makes a folder a checkpoint."""

import os
from pathlib import Path

import msgspec

from kybernate.store.errors import (
    Damage,
    Damaged,
    NoSuchCheckpoint,
    StoreError,
    UnknownFormat,
    disk_errors,
)
from kybernate.store.hashing import digest_of
from kybernate.store.sync import opened
from schemas.base import Undecodable, decode, decoder
from schemas.manifest import MANIFEST_NAME, MANIFEST_VERSION, Manifest

_MAX_BYTES = 256 * 1024 * 1024
_canonical = msgspec.json.Encoder(order="deterministic")


def seal(folder: Path, manifest: Manifest) -> str:
    """Write the manifest, the last file of the folder; its digest is the checkpoint's."""
    raw = _canonical.encode(manifest)
    path = folder / MANIFEST_NAME
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with disk_errors("write", path), os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(raw)
    return digest_of(raw)


def read_manifest(folder: Path, *, digest: str = "") -> Manifest:
    """The manifest of a folder; with a digest, only the one that was sealed under it."""
    raw = _read(folder / MANIFEST_NAME)
    manifest = _decode(raw)
    if digest and digest_of(raw) != digest:
        raise Damaged(Damage.OTHER_MANIFEST, MANIFEST_NAME)
    return manifest


def manifest_digest(folder: Path) -> str:
    return digest_of(_read(folder / MANIFEST_NAME))


class _Version(msgspec.Struct):
    version: int


def _read(path: Path) -> bytes:
    try:
        with opened(path) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as file:
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise NoSuchCheckpoint(f"{path.parent} holds no {path.name}: no checkpoint") from error
    except OSError as error:
        raise Damaged(Damage.BAD_MANIFEST, path.name, error.strerror or str(error)) from error
    if len(raw) > _MAX_BYTES:
        raise Damaged(Damage.BAD_MANIFEST, path.name, f"it is larger than {_MAX_BYTES} bytes")
    return raw


def _decode(raw: bytes) -> Manifest:
    try:
        return decode(raw, Manifest)
    except Undecodable as error:
        raise _undecodable(raw, error) from error


def _undecodable(raw: bytes, error: Undecodable) -> StoreError:
    try:
        version = decoder(_Version).decode(raw).version
    except (msgspec.DecodeError, UnicodeDecodeError):
        version = MANIFEST_VERSION
    if version != MANIFEST_VERSION:
        return UnknownFormat(f"the manifest is of version {version}, known is {MANIFEST_VERSION}")
    return Damaged(Damage.BAD_MANIFEST, MANIFEST_NAME, str(error))
