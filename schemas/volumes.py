"""What a checkpoint holds of a pod's volumes."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from schemas.base import Record

VOLUMES_FOLDER = "volumes"
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a pod's, not this process's

VolumeName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$(?!\n)", max_length=63)]


class VolumeKind(StrEnum):
    EMPTY_DIR = "emptyDir"
    SHARED_MEMORY = "sharedMemory"
    """What the containers of a pod have at /dev/shm, unless they mount something else there."""


class VolumeRecord(Record, frozen=True, kw_only=True):
    """A volume whose contents came along."""

    name: VolumeName
    kind: VolumeKind = VolumeKind.EMPTY_DIR
    bytes: int
    """Space that its files took."""

    @property
    def file(self) -> str:
        """Where its contents lie in the checkpoint."""
        return f"{VOLUMES_FOLDER}/{self.kind}/{self.name}.tar"

    def __str__(self) -> str:
        return SHARED_MEMORY if self.kind is VolumeKind.SHARED_MEMORY else f"emptyDir {self.name}"
