"""One gRPC call to containerd: its path, its time-out, and its failures as the port's errors."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import grpc.aio
import msgspec
from google.protobuf.message import Message

from node_worker.containerd.port import (
    AlreadyExists,
    NotFound,
    RuntimeFailed,
    RuntimeProblem,
    RuntimeTimedOut,
    RuntimeUnavailable,
    WrongState,
)

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

NAMESPACE_KEY = "containerd-namespace"
DEADLINE = "context deadline exceeded"
"""containerd passes the deadline on, and answers so where it or its shim notices it first."""
NAMED: Mapping[grpc.StatusCode, type[RuntimeProblem]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
}
ABOUT_OVER = 0.05
"""Seconds. When a call's deadline passes on containerd 2's own clock, it resets the stream, which
arrives as CANCELLED and often a moment before the deadline passes here. So a cancellation by
containerd this close to the end is the deadline; an earlier one is containerd on its way out."""
GONE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
CHANNEL_OPTIONS = (
    # containerd's server refuses the escaped socket path that grpc would send as authority
    ("grpc.default_authority", "localhost"),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)


class Call(msgspec.Struct, Generic[Q, A], frozen=True):
    """A method of containerd's API, by its whole path, and what it takes and answers."""

    path: str
    request: type[Q]
    answer: type[A]
    reads: bool = False
    """It changes nothing, so it can be made again."""


class Caller:
    """Makes calls over one channel, which reconnects by itself when containerd restarts."""

    def __init__(self, channel: grpc.aio.Channel, socket: Path) -> None:
        self._channel = channel
        self._socket = socket

    async def __call__(
        self, call: Call[Q, A], request: Q, *, namespace: str = "", timeout: float
    ) -> A:
        """What only reads is asked again, once and at once, where the answer was lost: with the
        connection when containerd restarts, or because containerd reset the stream.
        """
        end = time.monotonic() + timeout
        try:
            return await self._once(call, request, namespace, end, timeout)
        except RuntimeUnavailable:
            if not call.reads:
                raise
        return await self._once(call, request, namespace, end, timeout)

    async def _once(
        self, call: Call[Q, A], request: Q, namespace: str, end: float, timeout: float
    ) -> A:
        send = self._channel.unary_unary(
            call.path,
            request_serializer=call.request.SerializeToString,
            response_deserializer=call.answer.FromString,
        )
        metadata = ((NAMESPACE_KEY, namespace),) if namespace else ()
        try:
            answer: A = await send(request, timeout=end - time.monotonic(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            method = call.path.rpartition("/")[2]
            if _is_deadline(error, left=end - time.monotonic()):
                message = f"containerd did not end {method} within {timeout:g} s"
                raise RuntimeTimedOut(message) from error
            raise self._problem(method, error) from error
        return answer

    def _problem(self, method: str, error: grpc.aio.AioRpcError) -> RuntimeProblem:
        text, code = error.details() or "no details", error.code()
        if (named := NAMED.get(code)) is not None:
            return named(text)
        if code in GONE:
            return RuntimeUnavailable(
                f"containerd does not answer on {self._socket}: {text}; "
                "see that it runs and that the socket's path is right"
            )
        return RuntimeFailed(f"{method}: {text}")


def _is_deadline(error: grpc.aio.AioRpcError, *, left: float) -> bool:
    """Whether the call's time was over, whoever noticed it; `left` is what we have left of it."""
    match error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return True
        case grpc.StatusCode.CANCELLED if left < ABOUT_OVER:
            return True
    return error.code() not in NAMED and DEADLINE in (error.details() or "")


@contextlib.asynccontextmanager
async def open_caller(socket: Path) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(f"unix://{socket}", options=CHANNEL_OPTIONS) as channel:
        yield Caller(channel, socket)
