"""What a checkpoint holds of a pod's volumes."""

from typing import Annotated

from msgspec import Meta

from schemas.base import Record

VOLUMES_FOLDER = "volumes"

VolumeName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$(?!\n)", max_length=63)]


class VolumeRecord(Record, frozen=True, kw_only=True):
    """An emptyDir whose contents came along."""

    name: VolumeName
    bytes: int
    """Space that its files took."""

    @property
    def file(self) -> str:
        """Where its contents lie in the checkpoint."""
        return f"{VOLUMES_FOLDER}/{self.name}.tar"
