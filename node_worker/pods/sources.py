"""From the annotation of a pod to a checkpoint that it may resume from.

Whoever may create pods of a namespace may resume what was checkpointed in that namespace, and
nothing else: another one's checkpoint looks like one that is not there. A path leads to a folder
below the store, and no link on the way is followed. All calls block.
"""

from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from kybernate.store import CheckpointStore, Damage, Damaged, NoSuchCheckpoint, read_manifest
from node_worker.faults import Refused
from node_worker.pods.bundles import CONTAINER_NAME, NAMESPACE, Wish, annotations_of
from schemas import reasons
from schemas.manifest import Manifest

_ASIDE: Final = "."


def find(store: CheckpointStore, wish: Wish) -> tuple[Path, Manifest]:
    """The checkpoint's folder and manifest; what is in the folder is still to be verified."""
    try:
        folder = _folder(store, wish)
        manifest = read_manifest(folder)
    except NoSuchCheckpoint as error:
        raise _none_such(wish) from error
    if namespace_of(manifest) != wish.pod_namespace:
        raise _none_such(wish)
    if manifest.id != folder.name:
        raise Damaged(Damage.OTHER_CHECKPOINT, folder.name)
    return folder, manifest


def namespace_of(manifest: Manifest) -> str:
    """The Kubernetes namespace of the pod that was checkpointed; empty if it was none."""
    if manifest.pod is not None:
        return manifest.pod.namespace
    return annotations_of(manifest.container.spec).get(NAMESPACE, "")


def container_of(manifest: Manifest) -> str:
    """The name that the container had in its pod."""
    if manifest.pod is not None:
        return manifest.pod.container
    return annotations_of(manifest.container.spec).get(CONTAINER_NAME, "")


def is_init_container(manifest: Manifest, name: str) -> bool:
    """Whether the checkpointed pod had an init container of that name."""
    if manifest.pod is None:
        return False
    template = msgspec.json.decode(manifest.pod.template, type=_Template)
    return any(container.name == name for container in template.spec.init_containers)


class _Named(msgspec.Struct, frozen=True):
    name: str


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    init_containers: tuple[_Named, ...] = ()


class _Template(msgspec.Struct, frozen=True):
    spec: _Spec = _Spec()


def _folder(store: CheckpointStore, wish: Wish) -> Path:
    if not wish.source.startswith("/"):
        if not _is_id(wish.source):
            raise _not_plain(wish, "it is neither a checkpoint's id nor an absolute path")
        return store.folder(wish.source)
    path = Path(wish.source)
    if ".." in path.parts or not _is_id(path.name):
        raise _not_plain(wish, "a path has to end in a checkpoint's id")
    for root in (store.root, store.root.resolve()):
        if path.is_relative_to(root) and path != root:
            return _without_links(path, root, wish)
    raise _not_plain(wish, f"the path is not below {store.root}, where this node has checkpoints")


def _without_links(path: Path, root: Path, wish: Wish) -> Path:
    way = [part for part in (path, *path.parents) if part.is_relative_to(root) and part != root]
    if any(part.is_symlink() for part in way):
        raise _not_plain(wish, "a symbolic link is on the way")
    if any(part.name.startswith(_ASIDE) for part in way):
        raise _none_such(wish)
    return path


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _not_plain(wish: Wish, why: str) -> Refused:
    return Refused(
        reasons.INVALID_REQUEST,
        f"the pod cannot resume from {wish.source[:200]!r}: {why}",
        advice="Name the id of a checkpoint (`kybernate get checkpoints`).",
    )


def _none_such(wish: Wish) -> Refused:
    return Refused(
        reasons.CHECKPOINT_MISSING,
        f"there is no checkpoint {wish.source} of the namespace {wish.pod_namespace} on this node",
        advice="See `kybernate get checkpoints` for the checkpoints and their nodes; "
        "a pod resumes only from one of its own namespace.",
    )
