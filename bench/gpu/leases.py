"""containerd's garbage collection, asked for: a lease that is deleted `sync` collects and waits.

The two messages have one text and one flag; they are written field by field, so that the product
need not carry the description of a service that it does not use.
"""

import uuid
from typing import Any, Self

from node_worker import protowire
from node_worker.containerd.calls import Call, Caller
from node_worker.protowire import BYTES, VARINT, Field

SECONDS = 300.0
_ID = 1
_SYNC = 2


class Wire(bytes):
    """A message that was encoded already."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - as protobuf names it
        return bytes(self)

    @classmethod
    def FromString(cls, raw: bytes) -> Self:  # noqa: N802
        return cls(raw)


async def collect_garbage(caller: Caller, namespace: str) -> None:
    """Return when everything that nothing refers to is gone from the disk."""
    lease = Field(_ID, BYTES, f"kybernate-{uuid.uuid4()}".encode())
    await _call(caller, namespace, "Create", [lease])
    await _call(caller, namespace, "Delete", [lease, Field(_SYNC, VARINT, 1)])


async def _call(caller: Caller, namespace: str, method: str, fields: list[Field]) -> None:
    kind: Any = Wire
    call = Call(f"/containerd.services.leases.v1.Leases/{method}", kind, kind)
    await caller(call, kind(protowire.encode(fields)), namespace=namespace, timeout=SECONDS)
