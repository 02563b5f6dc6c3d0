"""Checkpoint folders for tests: small, sealed, and valid until a test damages them."""

import os
from pathlib import Path

from kybernate.store import Follower, seal
from schemas.manifest import (
    IMAGES_FOLDER,
    ROOTFS_FILE,
    ContainerRecord,
    FileEntry,
    HostFacts,
    Manifest,
    PartFacts,
    PartRecord,
    part_folder,
)
from schemas.orders import Target

CHECKPOINT = "0d6e1f9a-3c1b-4b60-9d0e-2f5a8f6b7c11"
OTHER_CHECKPOINT = "7b1c3f52-88aa-4f0d-a1a5-0c7f3d2b9e44"


PARTS = ("counter", "beside")


def parts_of(target: Target, image: str = "") -> tuple[PartFacts, ...]:
    """Of a checkpoint of this container alone."""
    return (PartFacts(name=target.container, target=target, image=image),)


def part(name: str) -> PartRecord:
    return PartRecord(
        name=name,
        target=Target(namespace="default", container=name),
        container=ContainerRecord(
            image="counter:1",
            labels={},
            snapshotter="overlayfs",
            parent_snapshot="sha256:aa",
            runtime="io.containerd.runc.v2",
            runtime_options_type="",
            runtime_options=b"",
            spec=b"{}",
        ),
    )


def manifest_of(files: tuple[FileEntry, ...], checkpoint: str = CHECKPOINT) -> Manifest:
    return Manifest(
        id=checkpoint,
        action="action",
        created=1.0,
        parts=tuple(map(part, PARTS)),
        host=HostFacts(node="node-1", architecture="x86_64", kernel="6.1", cpu_model="cpu"),
        files=files,
    )


def fill(folder: Path) -> None:
    """What small dumps look like: pages, other images, an empty file, an archive."""
    for name in PARTS:
        place = folder / part_folder(name)
        images = place / IMAGES_FOLDER
        images.mkdir(parents=True, exist_ok=True)
        (images / "pages-1.img").write_bytes(os.urandom(700_000))
        (images / "inventory.img").write_bytes(b"inventory")
        (images / "fdinfo-2.img").write_bytes(b"")
        (place / ROOTFS_FILE).write_bytes(os.urandom(300_000))


def sealed(folder: Path, checkpoint: str = CHECKPOINT) -> Manifest:
    """Fill the folder and seal it."""
    fill(folder)
    with Follower() as follower:
        follower.start(folder)
        manifest = manifest_of(follower.finish(), checkpoint)
    seal(folder, manifest)
    return manifest
