"""The worker's settings: which node it serves, and where on the host it works."""

from pathlib import Path

import msgspec

from kybernate.bus import BusSettings
from node_worker.gpu.helper import CUDA_DRIVER

DEFAULT_STATE = Path("/var/lib/kybernate")
DEFAULT_CONTAINERD = Path("/run/containerd/containerd.sock")
DEFAULT_RUNTIME_STATE = Path("/run/kybernate")


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    """The name that jobs are addressed to."""
    state: Path = DEFAULT_STATE
    """The worker's own folder: ledger, lock, logs of CRIU."""
    checkpoints: Path | None = None
    """Where checkpoints lie; default: `checkpoints` in the state folder."""
    containerd: Path = DEFAULT_CONTAINERD
    """containerd's socket."""
    bus: BusSettings = BusSettings()
    gpu_driver: str = CUDA_DRIVER
    """The module whose driver the GPU helper opens: another one for simulated GPUs."""
    gpu_argument: str = ""
    """For that driver; CUDA's takes the UUIDs of the GPUs that this worker looks after, with commas
    between them; empty: all of the host."""
    runc_root: Path | None = None
    """Where runc keeps the state of this containerd's containers, and below the cgroup where they
    are: for those that come from another node. Not given: these stay as they were there."""
    cgroup_parent: str = ""

    retire_seconds: float = 20.0
    """How long the containers of a pod that is to go stand still for kubelet to end them."""
    pods: bool = False
    """Whether this worker brings containers of Kubernetes pods back."""
    runtime_state: Path = DEFAULT_RUNTIME_STATE
    """Where it meets the OCI runtime of such pods (STATE in kybernate-runc.conf)."""

    @property
    def store(self) -> Path:
        return self.checkpoints or self.state / "checkpoints"

    @property
    def ledger(self) -> Path:
        return self.state / "ledger.db"

    @property
    def lock(self) -> Path:
        return self.state / "worker.lock"

    def work(self, job: str) -> Path:
        """Where CRIU writes its log during one job."""
        return self.state / "work" / job

    @property
    def criu_configs(self) -> Path:
        """Option files that runc reads for restored containers; they live as long as those."""
        return self.state / "criu"
