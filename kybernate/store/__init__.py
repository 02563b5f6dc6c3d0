"""Checkpoints at rest on a node's disk: made aside, hashed while written, sealed, verified."""

from kybernate.store.errors import (
    CheckpointExists,
    Damage,
    Damaged,
    InvalidCheckpointId,
    NoSuchCheckpoint,
    StoreError,
    StoreFull,
    StoreUnusable,
    UnknownFormat,
    disk_errors,
)
from kybernate.store.folder import CheckpointStore
from kybernate.store.follower import Follower
from kybernate.store.hashing import cores
from kybernate.store.manifest import manifest_digest, read_manifest, seal
from kybernate.store.verify import verify

__all__ = [
    "CheckpointExists",
    "CheckpointStore",
    "Damage",
    "Damaged",
    "Follower",
    "InvalidCheckpointId",
    "NoSuchCheckpoint",
    "StoreError",
    "StoreFull",
    "StoreUnusable",
    "UnknownFormat",
    "cores",
    "disk_errors",
    "manifest_digest",
    "read_manifest",
    "seal",
    "verify",
]
