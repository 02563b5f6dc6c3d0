"""Publishing into a stream: sent, stored, confirmed."""

import msgspec

from kybernate.bus.link import Link
from kybernate.bus.port import Conflict, TooLarge, TopologyMissing
from kybernate.bus.topology import ApiError, api_problem
from schemas.names import MAX_MESSAGE_BYTES

_WRONG_REVISION = 10071
_TOO_LARGE = 10054


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The server's word that a message lies in a stream."""

    seq: int = 0
    error: ApiError | None = None


_STORED = msgspec.json.Decoder(Stored)


def check_size(what: str, payload: bytes) -> None:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise TooLarge(f"{what} has {len(payload)} bytes; at most {MAX_MESSAGE_BYTES} are allowed")


async def publish(link: Link, subject: str, payload: bytes, headers: dict[str, str] | None) -> int:
    """The message's sequence in its stream."""
    reply = await link.request(subject, payload, headers)
    if not reply.data:
        raise TopologyMissing(f"no stream of NATS takes {subject}")
    stored = _STORED.decode(reply.data)
    if stored.error is None:
        return stored.seq
    if stored.error.err_code == _WRONG_REVISION:
        raise Conflict(f"{subject} was written by somebody else: {stored.error.description}")
    if stored.error.err_code == _TOO_LARGE:
        raise TooLarge(f"the stream takes no message of {len(payload)} bytes on {subject}")
    raise api_problem(f"store {subject}", stored.error)
