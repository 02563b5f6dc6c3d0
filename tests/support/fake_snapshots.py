"""The runtime twin's snapshots: real folders, laid out and mounted as the overlay snapshotter's."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import msgspec

from node_worker.containerd.port import (
    AlreadyExists,
    Mount,
    NotFound,
    Snapshot,
    SnapshotKind,
    WrongState,
)

Name = tuple[str, str, str]  # namespace, snapshotter, key


class FakeSnapshots:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = itertools.count(1)
        self._known: dict[Name, tuple[Snapshot, Path]] = {}

    def namespaces(self) -> set[str]:
        return {namespace for namespace, _, _ in self._known}

    def get(self, name: Name) -> Snapshot:
        return self._find(name)[0]

    def prepare(self, name: Name, parent: str, labels: Mapping[str, str]) -> None:
        self._refuse_known(name)
        if parent:
            self._find((*name[:2], parent))
        folder = self._root / str(next(self._numbers))
        for part in ("fs", "work"):
            (folder / part).mkdir(parents=True)
        snapshot = Snapshot(key=name[2], parent=parent, kind=SnapshotKind.ACTIVE, labels=labels)
        self._known[name] = snapshot, folder

    def commit(self, name: Name, new_key: str, labels: Mapping[str, str]) -> None:
        active, folder = self._find(name)
        new_name = (*name[:2], new_key)
        self._refuse_known(new_name)
        del self._known[name]
        committed = msgspec.structs.replace(
            active, key=new_key, kind=SnapshotKind.COMMITTED, labels=labels
        )
        self._known[new_name] = committed, folder

    def remove(self, name: Name) -> None:
        if any(
            other[:2] == name[:2] and snapshot.parent == name[2]
            for other, (snapshot, _) in self._known.items()
        ):
            raise WrongState("cannot remove snapshot with child")
        self._known.pop(name, None)

    def mounts(self, name: Name) -> tuple[Mount, ...]:
        snapshot, folder = self._find(name)
        lower = []
        while snapshot.parent:
            snapshot, below = self._find((*name[:2], snapshot.parent))
            lower.append(f"{below}/fs")
        if not lower:
            return (Mount(type="bind", source=f"{folder}/fs", options=("rw", "rbind")),)
        options = (f"workdir={folder}/work", f"upperdir={folder}/fs", f"lowerdir={':'.join(lower)}")
        return (Mount(type="overlay", source="overlay", options=options),)

    def _find(self, name: Name) -> tuple[Snapshot, Path]:
        if (found := self._known.get(name)) is None:
            raise NotFound(f"snapshot {name[2]} does not exist: not found")
        return found

    def _refuse_known(self, name: Name) -> None:
        if name in self._known:
            raise AlreadyExists(f'snapshot "{name[2]}": already exists')
