"""What a checkpoint keeps of the Kubernetes pod that its containers belonged to."""

from schemas.base import Record


class Owner(Record, frozen=True, kw_only=True):
    """The controller that makes a pod anew when it goes: a ReplicaSet, a StatefulSet, a Job."""

    kind: str
    name: str
    uid: str
    revision: str = ""
    """Of the template, where an owner has several in its life, as a StatefulSet does."""
    index: str = ""
    """The pod's completion index, if it is one of an Indexed Job."""


class PodRecord(Record, frozen=True, kw_only=True):
    """Enough to make a pod that its containers can resume in."""

    namespace: str
    """Of Kubernetes; only pods of the same one may resume from the checkpoint."""
    name: str
    uid: str
    node: str
    template: str
    """Labels, annotations and spec as JSON, without what belongs to the old pod alone; empty once
    the checkpoint is deleted."""
    owner: Owner | None = None
