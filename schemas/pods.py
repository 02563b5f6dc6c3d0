"""What a checkpoint keeps of the Kubernetes pod that its container belonged to."""

from schemas.base import Record


class PodRecord(Record, frozen=True, kw_only=True):
    """Enough to make a pod that its container can resume in."""

    namespace: str
    """Of Kubernetes; only pods of the same one may resume from the checkpoint."""
    name: str
    uid: str
    container: str
    """The container's name in the pod."""
    node: str
    template: str
    """Labels, annotations and spec as JSON, without what belongs to the old pod alone."""
