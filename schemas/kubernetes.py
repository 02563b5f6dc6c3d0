"""The custom resources of kybernate.io/v1alpha1: what users write and what they are shown.

The CRDs in `deploy/crds/` are made from these structs, so descriptions stand with the fields.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

GROUP = "kybernate.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
CHECKPOINT_FINALIZER = f"{GROUP}/checkpoint"
RESTORE_FROM_ANNOTATION = f"{GROUP}/restore-from"
RESTORE_LABEL = f"{GROUP}/restore"
"""On a restored pod: the UID of the KybernateRestore that made it."""
RESUME_LABEL = f"{GROUP}/resume"
"""On pods of a Deployment, StatefulSet or Job that go on where an evicted one was: "true"."""
ADMISSION_ANNOTATION = f"{GROUP}/admission"
"""On such a pod: the UID of the request by which it was looked at."""
NODE_UNAVAILABLE_ANNOTATION = f"{GROUP}/node-unavailable"
"""What a pod does whose checkpoint's node takes no pods: wait, or start from its image."""
RUNTIME_CLASS = "kybernate"
GPU_RUNTIME_CLASS = "kybernate-gpu"
DEFAULT_TIMEOUT_SECONDS = 600

PodName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        min_length=1,
        max_length=253,
    ),
]
ContainerName = Annotated[str, Meta(max_length=63)]
Path = Annotated[str, Meta(max_length=4096)]
HttpPath = Annotated[str, Meta(pattern="^/", max_length=2048)]
Bucket = Annotated[str, Meta(max_length=63)]
AtLeastOne = Annotated[int, Meta(ge=1)]
Replicas = Annotated[int, Meta(ge=0, le=1000)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[int, Meta(ge=1, le=24 * 3600)]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Quantity = Annotated[
    int | str,
    Meta(
        extra_json_schema={
            "x-kubernetes-int-or-string": True,
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i?)?$",
        }
    ),
]
POD_SPEC = {
    "required": ["containers"],
    "properties": {
        "containers": {
            "type": "array",
            "description": "Containers of the pod.",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string", "description": "Name in the pod."}},
                "x-kubernetes-preserve-unknown-fields": True,
            },
        }
    },
    "x-kubernetes-preserve-unknown-fields": True,
}
"""Only what every one has; the API server looks at the rest when a pod is made of it."""


class Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Part of a resource, named as Kubernetes names fields."""


class ObjectMeta(Part, frozen=True, kw_only=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Condition(Part, frozen=True, kw_only=True, omit_defaults=True):
    """One aspect of the resource's state."""

    type: Annotated[str, Meta(description="Ready, Reconciling or Stalled.", max_length=316)]
    status: Annotated[Literal["True", "False", "Unknown"], Meta(description="Whether it holds.")]
    reason: Annotated[
        str, Meta(description="Why, as a constant word.", min_length=1, max_length=1024)
    ]
    message: Annotated[
        str, Meta(description="Why, and what to do, in words.", max_length=32768)
    ] = ""
    last_transition_time: Annotated[Time, Meta(description="When the status last changed.")]
    observed_generation: Annotated[
        int | None, Meta(description="The generation of the resource that it speaks of.")
    ] = None


class StorageType(StrEnum):
    LOCAL = "local"
    S3 = "s3"
    PEER = "peer"


class Storage(Part, frozen=True, kw_only=True):
    """Where a checkpoint is kept. Only `local` is served so far."""

    type: Annotated[
        StorageType, Meta(description="local: on the node. s3 and peer: not served yet.")
    ] = StorageType.LOCAL
    path: Annotated[Path | None, Meta(description="Folder on the node.")] = None
    bucket: Annotated[Bucket | None, Meta(description="Bucket of s3.")] = None
    prefix: Annotated[str | None, Meta(description="What keys in it begin with.")] = None


class Gpu(Part, frozen=True, kw_only=True):
    """How GPU memory is treated."""

    enabled: Annotated[
        bool, Meta(description="False refuses a container that uses a GPU: not served yet.")
    ] = True


class CheckpointGpu(Gpu, frozen=True, kw_only=True):
    """How GPU memory is treated."""

    independent_processes: Annotated[
        bool,
        Meta(
            description="Vouch that the pod's CUDA processes share no GPU memory with each other; "
            "otherwise more than one is refused."
        ),
    ] = False


class DeletionPolicy(StrEnum):
    DELETE = "Delete"
    KEEP = "Keep"


class CheckpointPhase(StrEnum):
    PENDING = "Pending"
    IN_PROGRESS = "InProgress"
    COMPLETED = "Completed"
    FAILED = "Failed"


class CheckpointSpec(Part, frozen=True, kw_only=True):
    """What to checkpoint. Fixed once created, but for deletionPolicy."""

    pod_name: Annotated[
        PodName, Meta(description="Name of the running pod, in the namespace of this resource.")
    ]
    container_name: Annotated[
        ContainerName | None,
        Meta(description="The one container to checkpoint; default: all of the pod, as one."),
    ] = None
    leave_running: Annotated[
        bool,
        Meta(description="Let the pod run on; otherwise it is deleted once its state is durable."),
    ] = False
    timeout: Annotated[
        Seconds, Meta(description="Seconds after which the checkpoint is given up.")
    ] = DEFAULT_TIMEOUT_SECONDS
    storage: Annotated[Storage, Meta(description="Where the checkpoint is kept.")] = Storage()
    gpu: Annotated[CheckpointGpu, Meta(description="How GPU memory is treated.")] = CheckpointGpu()
    deletion_policy: Annotated[
        DeletionPolicy,
        Meta(description="Delete: the checkpoint goes with this resource. Keep: it stays."),
    ] = DeletionPolicy.DELETE


class CheckpointStatus(Part, frozen=True, kw_only=True):
    """How far the checkpoint is."""

    phase: Annotated[CheckpointPhase, Meta(description="Pending, InProgress, then the end.")] = (
        CheckpointPhase.PENDING
    )
    action: Annotated[
        str | None, Meta(description="Id of the action: see `kybernate describe action`.")
    ] = None
    checkpoint_ref: Annotated[
        str | None, Meta(description="Id of the checkpoint, once it is durable.")
    ] = None
    pod_uid: Annotated[str | None, Meta(description="UID of the pod that was found.")] = (
        msgspec.field(name="podUID", default=None)
    )
    node_name: Annotated[str | None, Meta(description="Node that holds it.")] = None
    checkpoint_size: Annotated[str | None, Meta(description="Its size, for example 1.2Gi.")] = None
    start_time: Annotated[Time | None, Meta(description="When work on it began.")] = None
    completion_time: Annotated[Time | None, Meta(description="When it ended.")] = None
    duration: Annotated[str | None, Meta(description="How long it took.")] = None
    conditions: Annotated[tuple[Condition, ...], Meta(description="Its state in detail.")] = ()
    observed_generation: Annotated[
        int | None, Meta(description="The generation of the resource that was looked at last.")
    ] = None


class KybernateCheckpoint(Part, frozen=True, kw_only=True):
    """A checkpoint of a running pod: its processes, its GPU memory, its changed files."""

    metadata: ObjectMeta = ObjectMeta()
    spec: CheckpointSpec
    status: CheckpointStatus | None = None


class Resources(Part, frozen=True, kw_only=True, omit_defaults=True):
    """Requests and limits of the restored container, instead of the original's."""

    limits: Annotated[
        dict[str, Quantity] | None, Meta(description="Most that it may use, by resource.")
    ] = None
    requests: Annotated[
        dict[str, Quantity] | None, Meta(description="What is set aside for it, by resource.")
    ] = None


class TargetPod(Part, frozen=True, kw_only=True):
    """How the new pod differs from the one that was checkpointed."""

    name: Annotated[
        PodName | None,
        Meta(description="Its name; default: the original's, -restored- and five characters."),
    ] = None
    node_selector: Annotated[
        dict[str, str] | None, Meta(description="Labels that its node must have, in addition.")
    ] = None
    node_name: Annotated[
        str | None, Meta(description="Its node; so far only the one that holds the checkpoint.")
    ] = None
    resources: Annotated[
        Resources | None,
        Meta(description="Requests and limits of its only container, instead of the original's."),
    ] = None


class RestorePhase(StrEnum):
    PENDING = "Pending"
    RESTORING = "Restoring"
    RUNNING = "Running"
    FAILED = "Failed"


class RestoreSpec(Part, frozen=True, kw_only=True):
    """What to restore. Fixed once created."""

    checkpoint_ref: Annotated[
        str,
        Meta(
            description="Name of a KybernateCheckpoint of this namespace, or a checkpoint's id.",
            min_length=1,
            max_length=253,
        ),
    ]
    target_pod: Annotated[TargetPod, Meta(description="How the new pod differs.")] = TargetPod()
    timeout: Annotated[
        Seconds, Meta(description="Seconds after which the restore is given up.")
    ] = DEFAULT_TIMEOUT_SECONDS
    gpu: Annotated[Gpu, Meta(description="How GPU memory is treated.")] = Gpu()


class RestoreStatus(Part, frozen=True, kw_only=True):
    """How far the restore is."""

    phase: Annotated[RestorePhase, Meta(description="Pending, Restoring, then the end.")] = (
        RestorePhase.PENDING
    )
    checkpoint: Annotated[str | None, Meta(description="Id of the checkpoint.")] = None
    restored_pod_name: Annotated[str | None, Meta(description="Name of the new pod.")] = None
    restored_pod_uid: Annotated[str | None, Meta(description="UID of the new pod.")] = (
        msgspec.field(name="restoredPodUID", default=None)
    )
    node_name: Annotated[str | None, Meta(description="Node that it runs on.")] = None
    start_time: Annotated[Time | None, Meta(description="When work on it began.")] = None
    restore_time: Annotated[Time | None, Meta(description="When the pod ran again.")] = None
    duration: Annotated[str | None, Meta(description="How long it took.")] = None
    conditions: Annotated[tuple[Condition, ...], Meta(description="Its state in detail.")] = ()
    observed_generation: Annotated[
        int | None, Meta(description="The generation of the resource that was looked at last.")
    ] = None


class KybernateRestore(Part, frozen=True, kw_only=True):
    """A new pod that goes on where a checkpoint stands."""

    metadata: ObjectMeta = ObjectMeta()
    spec: RestoreSpec
    status: RestoreStatus | None = None


class TemplateMetadata(Part, frozen=True, kw_only=True):
    """What a pod of the workload carries."""

    labels: Annotated[dict[str, str] | None, Meta(description="Labels of the pod.")] = None
    annotations: Annotated[dict[str, str] | None, Meta(description="Annotations of the pod.")] = (
        None
    )


class Template(Part, frozen=True, kw_only=True):
    """A pod of the workload."""

    metadata: Annotated[TemplateMetadata, Meta(description="What the pod carries.")] = (
        TemplateMetadata()
    )
    spec: Annotated[
        dict[str, Any],
        Meta(
            description="What the pod runs: a PodSpec, see `kubectl explain pod.spec`.",
            extra_json_schema=POD_SPEC,
        ),
    ]


class Suspend(Part, frozen=True, kw_only=True):
    """When the workload is checkpointed and ended because nobody needs it."""

    enabled: Annotated[bool, Meta(description="Whether it is suspended at all.")] = False
    idle_timeout: Annotated[
        AtLeastOne, Meta(description="Seconds without a request after which it is suspended.")
    ] = 300
    storage: Annotated[Storage, Meta(description="Where its checkpoints are kept.")] = Storage()


class ScaleToZero(Part, frozen=True, kw_only=True):
    """Between which numbers its replicas may change."""

    enabled: Annotated[
        bool, Meta(description="Whether their number changes; otherwise it is maxReplicas.")
    ] = False
    min_replicas: Annotated[Replicas, Meta(description="Fewest replicas, while idle.")] = 0
    max_replicas: Annotated[Replicas, Meta(description="Most replicas, while needed.")] = 1


class Activator(Part, frozen=True, kw_only=True):
    """What takes requests for a suspended workload, wakes it, and passes them on."""

    enabled: Annotated[
        bool, Meta(description="Whether requests are held back until it runs again.")
    ] = False
    port: Annotated[Port, Meta(description="The workload's port that requests go to.")] = 8080
    health_path: Annotated[
        HttpPath, Meta(description="Path that answers 200 once it serves requests.")
    ] = "/"
    queue_timeout: Annotated[
        AtLeastOne, Meta(description="Seconds after which a request that waits is refused.")
    ] = 30


class WorkloadSpec(Part, frozen=True, kw_only=True):
    """A workload that sleeps while nobody needs it."""

    template: Annotated[Template, Meta(description="A pod of it, as in a Deployment.")]
    suspend: Annotated[
        Suspend, Meta(description="When it is checkpointed and ended because nobody needs it.")
    ] = Suspend()
    scale_to_zero: Annotated[
        ScaleToZero, Meta(description="Between which numbers its replicas may change.")
    ] = ScaleToZero()
    activator: Annotated[
        Activator, Meta(description="What takes requests while it is suspended, and wakes it.")
    ] = Activator()


class WorkloadPhase(StrEnum):
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    RESTORING = "Restoring"


class WorkloadStatus(Part, frozen=True, kw_only=True):
    """What becomes of the workload."""

    phase: Annotated[
        WorkloadPhase | None, Meta(description="Running, Suspended, or Restoring in between.")
    ] = None
    active_replicas: Annotated[int | None, Meta(description="How many replicas run.")] = None
    suspended_checkpoints: Annotated[
        tuple[str, ...], Meta(description="Ids of the checkpoints that it resumes from.")
    ] = ()
    last_activity_time: Annotated[Time | None, Meta(description="When the last request came.")] = (
        None
    )
    conditions: Annotated[tuple[Condition, ...], Meta(description="Its state in detail.")] = ()


class KybernateWorkload(Part, frozen=True, kw_only=True):
    """A workload that is suspended when idle. Nothing acts on it yet."""

    metadata: ObjectMeta = ObjectMeta()
    spec: WorkloadSpec
    status: WorkloadStatus | None = None
