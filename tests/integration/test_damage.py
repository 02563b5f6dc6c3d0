"""A durable checkpoint that is damaged at rest is not restored: not a byte of it is used, and the
container's record stays as it is.
"""

import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from kybernate.embedded.workload import NAMESPACE, SNAPSHOTTER
from node_worker.containerd.port import Container, NotFound
from node_worker.rootfs import writable_layer
from schemas import reasons
from schemas.requests import RestoreRequest
from tests.support.counting import counting, counts_on, failure
from tests.support.node import Node, whole_node

CONTAINER = "counter"
PART = f"containers/{CONTAINER}"
ROOTFS, FILES, PAGES, MANIFEST = (
    f"{PART}/rootfs.tar",
    f"{PART}/images/files.img",
    f"{PART}/images/pages-1.img",
    "manifest.json",
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("damage")]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint, a copy of its folder as it was sealed, and the record of its container."""

    node: Node
    id: str
    folder: Path
    sealed: Path
    record: Container


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept() -> AsyncIterator[Kept]:
    with tempfile.TemporaryDirectory(prefix="ky-", dir="/tmp") as place:
        async with whole_node(Path(place) / "node") as node, counting(node, CONTAINER):
            before = await node.runtime.container(NAMESPACE, CONTAINER)
            mounts = await node.runtime.mounts(NAMESPACE, SNAPSHOTTER, before.snapshot_key)
            (writable_layer(mounts) / "changed").write_text("by the container")
            id = (await node.checkpoint(CONTAINER)).id
            folder, sealed = node.checkpoints / id, Path(place) / "sealed"
            shutil.copytree(folder, sealed)
            record = await node.runtime.container(NAMESPACE, CONTAINER)
            yield Kept(node=node, id=id, folder=folder, sealed=sealed, record=record)


def flip(path: Path, place: float) -> None:
    with path.open("r+b") as file:
        offset = int(path.stat().st_size * place)
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ 4,)))


def rewrite(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = folder / MANIFEST
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


def list_a_path_outside(folder: Path) -> None:
    def change(manifest: dict[str, object]) -> None:
        files = manifest["files"]
        assert isinstance(files, list)
        files[0]["path"] = "../../../etc/passwd"

    rewrite(folder, change)


def link(folder: Path) -> None:
    (folder / PAGES).rename(folder.parent.parent / "elsewhere")
    (folder / PAGES).symlink_to(folder.parent.parent / "elsewhere")


def device(folder: Path) -> None:
    (folder / PAGES).unlink()
    os.mknod(folder / PAGES, 0o20600, os.makedev(1, 5))


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "flipped bit in memory": (
        lambda folder: flip(folder / PAGES, 0.5),
        reasons.CHECKPOINT_DAMAGED,
        f"{PAGES} does not hold the bytes that were sealed",
    ),
    "flipped bit in an image": (
        lambda folder: flip(folder / FILES, 0.5),
        reasons.CHECKPOINT_DAMAGED,
        FILES,
    ),
    "flipped bit in an image's head": (
        lambda folder: flip(folder / FILES, 0.0),
        reasons.CHECKPOINT_DAMAGED,
        FILES,
    ),
    "flipped bit in the root filesystem": (
        lambda folder: flip(folder / ROOTFS, 0.01),
        reasons.CHECKPOINT_DAMAGED,
        ROOTFS,
    ),
    "flipped bit in the manifest": (
        lambda folder: flip(folder / MANIFEST, 0.5),
        reasons.CHECKPOINT_DAMAGED,
        MANIFEST,
    ),
    "truncated": (
        lambda folder: os.truncate(folder / PAGES, 4096),
        reasons.CHECKPOINT_DAMAGED,
        f"{PAGES} is shorter than the manifest says",
    ),
    "missing file": (
        lambda folder: (folder / PART / "images/inventory.img").unlink(),
        reasons.CHECKPOINT_DAMAGED,
        f"{PART}/images/inventory.img is missing",
    ),
    "missing root filesystem": (
        lambda folder: (folder / ROOTFS).unlink(),
        reasons.CHECKPOINT_DAMAGED,
        f"{ROOTFS} is missing",
    ),
    "added file": (
        lambda folder: (folder / PART / "images/pages-9.img").write_bytes(b""),
        reasons.CHECKPOINT_DAMAGED,
        f"{PART}/images/pages-9.img is not in the manifest",
    ),
    "path outside": (list_a_path_outside, reasons.CHECKPOINT_DAMAGED, MANIFEST),
    "link": (link, reasons.CHECKPOINT_DAMAGED, f"{PAGES} is no regular file"),
    "device": (device, reasons.CHECKPOINT_DAMAGED, f"{PAGES} is no regular file"),
    "earlier format": (
        lambda folder: rewrite(folder, lambda manifest: manifest.update(version=1)),
        reasons.UNKNOWN_FORMAT,
        "the manifest is of version 1, known is 2",
    ),
    "garbage for a manifest": (
        lambda folder: (folder / MANIFEST).write_bytes(b"\xff\x00 garbage"),
        reasons.CHECKPOINT_DAMAGED,
        MANIFEST,
    ),
    "no manifest": (
        lambda folder: (folder / MANIFEST).unlink(),
        reasons.CHECKPOINT_MISSING,
        "there is no checkpoint",
    ),
    "no folder": (shutil.rmtree, reasons.CHECKPOINT_MISSING, "there is no checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_it_is_refused_and_nothing_is_changed(kept: Kept, damage: str) -> None:
    act, reason, words = DAMAGES[damage]
    shutil.rmtree(kept.folder)
    shutil.copytree(kept.sealed, kept.folder)
    act(kept.folder)
    why = await failure(kept.node, RestoreRequest(checkpoint=kept.id))
    assert (why.reason, words in why.message) == (reason, True), why
    assert not why.retriable
    await assert_as_before(kept)


async def assert_as_before(kept: Kept) -> None:
    runtime = kept.node.runtime
    assert await runtime.container(NAMESPACE, CONTAINER) == kept.record
    await runtime.snapshot(NAMESPACE, SNAPSHOTTER, kept.record.snapshot_key)
    with pytest.raises(NotFound):
        await runtime.task(NAMESPACE, CONTAINER)
    assert list(kept.node.checkpoints.glob(".aside/*")) == []


async def test_what_was_put_back_is_restored(kept: Kept) -> None:
    shutil.rmtree(kept.folder, ignore_errors=True)
    shutil.copytree(kept.sealed, kept.folder)
    restored = await kept.node.restore(kept.id)
    await counts_on(kept.node, kept.node.workloads.running(CONTAINER, restored.pid))
