"""What a bundle's config.json says of the pod that its container belongs to, and CRIU's options.

The annotations below `io.kubernetes.cri` are containerd's own words. The rest comes from whoever
may create pods, and is only ever looked up, never believed.
"""

from pathlib import Path
from typing import Any, Final

import msgspec

from node_worker.faults import Refused
from node_worker.resumed import CRIU_CONFIG, options_alone
from schemas import reasons
from schemas.base import Record

CONFIG: Final = "config.json"
CRIU_OPTIONS: Final = "criu.conf"
RESTORE_FROM: Final = "kybernate.io/restore-from"
RESTART: Final = "kybernate.io/restart"
FROM_CHECKPOINT: Final = "checkpoint"
FROM_IMAGE: Final = "image"
NAMESPACE: Final = "io.kubernetes.cri.sandbox-namespace"
SANDBOX: Final = "io.kubernetes.cri.sandbox-id"
CONTAINER_NAME: Final = "io.kubernetes.cri.container-name"


class Wish(Record, frozen=True, kw_only=True):
    """A container of a pod that wants to resume."""

    source: str
    """A checkpoint's id, or the path of its folder."""
    pod_namespace: str
    sandbox: str
    container_name: str
    restarts_from_image: bool


def read_wish(bundle: Path) -> Wish:
    """What the container of this bundle asks for."""
    annotations = annotations_of((bundle / CONFIG).read_bytes())
    missing = [name for name in (NAMESPACE, SANDBOX, CONTAINER_NAME) if not annotations.get(name)]
    if missing:
        raise Refused(
            reasons.INVALID_REQUEST,
            f"containerd does not say which pod the container belongs to ({', '.join(missing)})",
            advice="Use containerd 1.7 or newer.",
        )
    restart = annotations.get(RESTART, FROM_IMAGE)
    if restart not in {FROM_IMAGE, FROM_CHECKPOINT}:
        raise Refused(
            reasons.INVALID_REQUEST,
            f"the annotation {RESTART} is {restart[:40]!r}",
            advice=f"It has to be {FROM_IMAGE} or {FROM_CHECKPOINT}.",
        )
    return Wish(
        source=annotations.get(RESTORE_FROM, ""),
        pod_namespace=annotations[NAMESPACE],
        sandbox=annotations[SANDBOX],
        container_name=annotations[CONTAINER_NAME],
        restarts_from_image=restart == FROM_IMAGE,
    )


def annotations_of(spec: bytes) -> dict[str, str]:
    """The annotations of an OCI spec."""
    value: dict[str, Any] = msgspec.json.decode(spec, type=dict[str, Any])
    return dict(value.get("annotations") or {})


def give_options(bundle: Path) -> None:
    """Tell runc which options CRIU gets, in a file of the bundle; a pod has no say in them."""
    path = bundle / CONFIG
    value: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    options = bundle / CRIU_OPTIONS
    options.write_text(options_alone(value))
    value["annotations"] = {**(value.get("annotations") or {}), CRIU_CONFIG: str(options)}
    draft = path.with_suffix(".kybernate")
    draft.write_bytes(msgspec.json.encode(value))
    draft.chmod(path.stat().st_mode & 0o777)
    draft.replace(path)
