"""The images of the test cluster, made of busybox, as one OCI archive that containerd imports.

kybernate.io/pause:1 sleeps; kybernate.io/busybox:1 counts unless told otherwise: `Loop 1`, …
"""

import hashlib
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kybernate.embedded.rootfs import fill_busybox

PAUSE = "kybernate.io/pause:1"
BUSYBOX = "kybernate.io/busybox:1"
COMMANDS: Mapping[str, tuple[str, ...]] = {
    PAUSE: ("sleep", "2147483647"),
    BUSYBOX: ("counting",),
}
COUNTING = """\
#!/bin/sh
i=0
while :; do i=$((i + 1)); echo "Loop $i"; sleep "${1:-0.2}"; done
"""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
OCI = "application/vnd.oci.image"


class _Archive:
    """An OCI image layout in the making."""

    def __init__(self, target: tarfile.TarFile) -> None:
        self._target = target

    def add(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        self._target.addfile(entry, io.BytesIO(content))

    def blob(self, kind: str, content: bytes) -> dict[str, Any]:
        """Add content, and describe it as others refer to it."""
        digest = hashlib.sha256(content).hexdigest()
        self.add(f"blobs/sha256/{digest}", content)
        return {
            "mediaType": f"{OCI}.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(content),
        }


def write_archive(target: Path, busybox: Path) -> None:
    """All images, with one layer that they share."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        root = Path(folder)
        fill_busybox(root, busybox)
        (root / "bin/counting").write_text(COUNTING)
        (root / "bin/counting").chmod(0o755)
        pack(target, root, {name: {"Cmd": words} for name, words in COMMANDS.items()})


def pack(target: Path, root: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Images of that root filesystem, by their names: what each says of its process."""
    with tarfile.open(target, "w") as tar:
        archive = _Archive(tar)
        layer = archive.blob("layer.v1.tar", _layer(root))
        manifests = [_image(archive, layer, name, config) for name, config in configs.items()]
        archive.add("index.json", _json(schemaVersion=2, manifests=manifests))
        archive.add("oci-layout", _json(imageLayoutVersion="1.0.0"))


def _image(
    archive: _Archive, layer: dict[str, Any], name: str, process: Mapping[str, Any]
) -> dict[str, Any]:
    config = _json(
        architecture=ARCHITECTURES.get(platform.machine(), platform.machine()),
        os="linux",
        config={"Env": ["PATH=/bin"], **process},
        rootfs={"type": "layers", "diff_ids": [layer["digest"]]},
    )
    manifest = _json(
        schemaVersion=2,
        mediaType=f"{OCI}.manifest.v1+json",
        config=archive.blob("config.v1+json", config),
        layers=[layer],
    )
    return {
        **archive.blob("manifest.v1+json", manifest),
        "annotations": {"io.containerd.image.name": name},
    }


def _layer(root: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(root, arcname=".", filter=_of_root)
    return buffer.getvalue()


def _of_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same bytes whoever makes the layer, and whenever."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()
