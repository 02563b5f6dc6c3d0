"""The trace of a request begins here: its ids travel in the `traceparent` header.

A span is recorded only when an OTLP endpoint is configured; otherwise two random numbers do,
and OpenTelemetry, which takes longer to import than most commands run, stays out.
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

ENDPOINT = "KYBERNATE_OTLP_ENDPOINT"


@contextmanager
def command(action: str) -> Iterator[Mapping[str, str]]:
    """The headers that carry the trace of a command, for the time that the command takes."""
    endpoint = os.environ.get(ENDPOINT)
    if not endpoint:
        yield {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"}
        return
    from kybernate import telemetry  # noqa: PLC0415 - see above

    attributes = {telemetry.ATTRIBUTE_ACTION: action}
    with (
        telemetry.tracing("kybernate-cli", endpoint=endpoint),
        telemetry.span(telemetry.SPAN_COMMAND, attributes),
    ):
        yield telemetry.inject({})
