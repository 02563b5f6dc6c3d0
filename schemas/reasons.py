"""Why something failed or was refused: constants, as conditions, events and scripts use them."""

from typing import Final

# Requests
INVALID_REQUEST: Final = "InvalidRequest"
UNKNOWN_NODE: Final = "UnknownNode"
NODE_NOT_READY: Final = "NodeNotReady"
NODE_IN_USE: Final = "NodeInUse"
AMBIGUOUS_NODE: Final = "AmbiguousNode"
UNKNOWN_ACTION: Final = "UnknownAction"
UNKNOWN_CHECKPOINT: Final = "UnknownCheckpoint"
CHECKPOINT_IN_USE: Final = "CheckpointInUse"
ALREADY_ENDED: Final = "AlreadyEnded"
UNAUTHORIZED: Final = "Unauthorized"
NOT_FOUND: Final = "NotFound"
TOO_LARGE: Final = "TooLarge"
BUS_UNAVAILABLE: Final = "BusUnavailable"
INTERNAL: Final = "InternalError"

# The life of an action
CANCELLED: Final = "Cancelled"
DEADLINE_EXCEEDED: Final = "DeadlineExceeded"
NODE_SILENT: Final = "NodeSilent"
WORKER_RESTARTED: Final = "WorkerRestarted"
STALE_JOB: Final = "StaleJob"
UNDO_FAILED: Final = "UndoFailed"

# The container
UNKNOWN_CONTAINER: Final = "UnknownContainer"
NOT_RUNNING: Final = "NotRunning"
ALREADY_RUNNING: Final = "AlreadyRunning"
ALREADY_EXISTS: Final = "AlreadyExists"
CONTAINER_BUSY: Final = "ContainerBusy"
CANNOT_BE_CHECKPOINTED: Final = "CannotBeCheckpointed"
OUTSIDE_CONNECTION: Final = "OutsideConnection"
STOPPED_PROCESS: Final = "StoppedProcess"

# The node
RUNTIME_UNAVAILABLE: Final = "RuntimeUnavailable"
RUNTIME_FAILED: Final = "RuntimeFailed"
DUMP_FAILED: Final = "DumpFailed"
RESTORE_FAILED: Final = "RestoreFailed"
DISK_FULL: Final = "DiskFull"
NOT_ENOUGH_DISK: Final = "NotEnoughDisk"
STORE_UNUSABLE: Final = "StoreUnusable"
NOT_ENOUGH_MEMORY: Final = "NotEnoughMemory"
ROOTFS_FAILED: Final = "RootfsFailed"
VOLUME_FAILED: Final = "VolumeFailed"
IMAGE_MISSING: Final = "ImageMissing"

# The checkpoint
CHECKPOINT_DAMAGED: Final = "CheckpointDamaged"
CHECKPOINT_MISSING: Final = "CheckpointMissing"
UNKNOWN_FORMAT: Final = "UnknownFormat"
HOST_MISFIT: Final = "HostMisfit"

# The GPU
GPU_BUSY: Final = "GpuBusy"
GPU_HUNG: Final = "GpuHung"
GPU_FAILED: Final = "GpuFailed"
GPU_UNSUPPORTED: Final = "GpuUnsupported"
GPU_SHARED_MEMORY: Final = "GpuSharedMemory"
GPU_MISFIT: Final = "GpuMisfit"
GPU_DRIVER_TOO_OLD: Final = "GpuDriverTooOld"
GPU_UNAVAILABLE: Final = "GpuUnavailable"
GPU_SLOW: Final = "GpuSlow"
