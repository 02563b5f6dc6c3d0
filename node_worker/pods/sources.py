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
from schemas.base import decoder
from schemas.manifest import Manifest, PartRecord

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
    namespaces = {annotations_of(part.container.spec).get(NAMESPACE) for part in manifest.parts}
    return (namespaces.pop() or "") if len(namespaces) == 1 else ""


def part_of(manifest: Manifest, wish: Wish) -> PartRecord | None:
    """The container of the checkpoint that resumes; None: it was there and is not part of it."""
    parts = {_name_in_pod(part): part for part in manifest.parts}
    part = parts.get(wish.container_name)
    if part is not None or wish.container_name in _names_in_template(manifest):
        return part
    raise Refused(
        reasons.INVALID_REQUEST,
        f"checkpoint {manifest.id} is of {', '.join(parts)}, not of {wish.container_name}",
        advice="Give the containers the names that they had; others cannot join them.",
    )


def _name_in_pod(part: PartRecord) -> str:
    """Also of one that was not checkpointed as part of a pod."""
    return annotations_of(part.container.spec).get(CONTAINER_NAME, part.name)


def _names_in_template(manifest: Manifest) -> frozenset[str]:
    """All containers that the checkpointed pod had, init containers too."""
    if manifest.pod is None:
        return frozenset()
    spec = decoder(_Template).decode(manifest.pod.template).spec
    return frozenset(one.name for one in (*spec.init_containers, *spec.containers))


class _Named(msgspec.Struct, frozen=True):
    name: str


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    init_containers: tuple[_Named, ...] = ()
    containers: tuple[_Named, ...] = ()


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
