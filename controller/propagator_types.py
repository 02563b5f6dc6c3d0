"""The bodies of the propagator's API, as its clients send and expect them."""

from typing import Literal

import msgspec

ActionType = Literal["checkpoint_pod", "restore_pod", "heartbeat"]
ActionStatus = Literal[
    "initialized", "processing", "checkpoint_created", "ready", "error", "not_found"
]
CheckpointStatus = Literal[
    "initializing", "updated_info", "possibly_uploaded", "ready", "deprecated"
]


class CriuOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What of CRIU's options means something here; others are decided by the node."""

    leave_running: bool | None = None


class CheckpointOverrides(msgspec.Struct, frozen=True, kw_only=True):
    criu_opts: CriuOptions | None = None


class CheckpointPod(msgspec.Struct, frozen=True, kw_only=True):
    pod_id: str = ""
    pod_name: str = ""
    namespace: str = ""
    cluster_id: str = ""
    kind: Literal["simple", "rootfs", "rootfsonly"] = "simple"
    reason: Literal["heartbeat", "manual", "maintenance"] = "manual"
    overrides: CheckpointOverrides | None = None


class RestoreOverrides(msgspec.Struct, frozen=True, kw_only=True):
    pod_name: str | None = None


class RestorePod(msgspec.Struct, frozen=True, kw_only=True):
    action_id: str
    reason: Literal["nodeTermination", "nodeUnschedulable", "manual"] = "manual"
    cluster_id: str = ""
    overrides: RestoreOverrides | None = None


class PodStatus(msgspec.Struct, frozen=True, kw_only=True):
    status: ActionStatus
    action_id: str
    pod_id: str = ""
    pod_spec: str = ""
    pod_metadata_spec: str = ""
    persistent_volume_claim: str = ""
    details: str = ""


class PodAction(msgspec.Struct, frozen=True, kw_only=True):
    action_id: str
    checkpoint_id: str
    status: ActionStatus
    type: ActionType
    details: str
    gpu: bool
    platform: str
    checkpoint_status: CheckpointStatus | None = None
    checkpoint_name: str = ""
    checksum: str = ""
    node_name: str = ""
    reason: str = ""
    total_duration: float | None = None
    """Seconds."""
    total_io: int | None = None
    """Bytes."""
    workload_kind: str = ""
    action_timestamp: str = ""
    checkpoint_completed_timestamp: str = ""


class PodCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    checkpoint_id: str
    action_id: str
    status: CheckpointStatus
    pod_id: str
    namespace: str
    node_name: str
    gpu: bool
    platform: str
    size: int
    checksum: str
    checkpoint_completed_timestamp: str


class Deprecated(msgspec.Struct, frozen=True, kw_only=True):
    checkpoint_id: str
    status: CheckpointStatus


class NewCluster(msgspec.Struct, frozen=True, kw_only=True):
    cluster_name: str


class User(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str


class ActionsQuery(msgspec.Struct, frozen=True, kw_only=True):
    type: ActionType | None = None
    cluster_id: str | None = None
