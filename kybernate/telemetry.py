"""Traces and logs: one trace from a request to the last step on a node, its id in every log line.

Spans always have ids, so that logs and messages carry them; they are recorded only when somebody
wants them: an OTLP endpoint, or a SpanCollector in this process (the demo's timeline).
The provider is this module's own, never OpenTelemetry's global one, so that it can be set up
and taken down more than once in a process.
"""

import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO

import msgspec
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.sdk.trace.sampling import ALWAYS_ON as RECORD_ALL
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

SPAN_COMMAND = "command"
"""What somebody typed."""
SPAN_REQUEST = "request"
"""One REST request, as the controller serves it."""
SPAN_DISPATCH = "dispatch"
"""A job on its way into the stream."""
SPAN_JOB = "job"
"""A job at work on its node."""
SPAN_UNDO = "undo"
"""The way back of a job that failed."""
SPAN_EVENT = "event"
"""An event folded into its action."""

ATTRIBUTE_ACTION = "kybernate.action"
ATTRIBUTE_ATTEMPT = "kybernate.attempt"
ATTRIBUTE_NODE = "kybernate.node"
ATTRIBUTE_STEP = "kybernate.step"

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_PROPAGATOR = TraceContextTextMapPropagator()
_MAX_COLLECTED = 100_000


def step_span(step: str) -> str:
    """The name of the span of one step of a plan."""
    return f"step {step}"


class FinishedSpan(msgspec.Struct, frozen=True, kw_only=True):
    """A span as the timeline shows it; times are seconds since the epoch."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    start: float
    end: float
    failed: bool
    attributes: dict[str, str]

    @property
    def seconds(self) -> float:
        return self.end - self.start


class SpanCollector(SpanExporter):
    """Keeps the finished spans of this process, for a timeline."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[FinishedSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        finished = [_finished(span) for span in spans]
        with self._lock:
            self._spans = (self._spans + finished)[-_MAX_COLLECTED:]
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to end; what was collected stays readable."""

    def spans(self, trace_id: str) -> list[FinishedSpan]:
        with self._lock:
            return [span for span in self._spans if span.trace_id == trace_id]

    def timeline(self, trace_id: str) -> list[tuple[int, FinishedSpan]]:
        """The trace as a tree in the order of time: (depth, span)."""
        spans = sorted(self.spans(trace_id), key=lambda span: (span.start, -span.end))
        known = {span.span_id for span in spans}
        children: dict[str, list[FinishedSpan]] = {}
        for span in spans:
            parent = span.parent_id if span.parent_id in known else ""
            children.setdefault(parent, []).append(span)
        return list(_walk(children, "", 0))


def _walk(
    children: Mapping[str, list[FinishedSpan]], parent: str, depth: int
) -> Iterator[tuple[int, FinishedSpan]]:
    for span in children.get(parent, []):
        yield depth, span
        yield from _walk(children, span.span_id, depth + 1)


def _finished(span: ReadableSpan) -> FinishedSpan:
    own = span.get_span_context()
    return FinishedSpan(
        name=span.name,
        service=str(span.resource.attributes.get("service.name", "")),
        trace_id=trace.format_trace_id(own.trace_id) if own else "",
        span_id=trace.format_span_id(own.span_id) if own else "",
        parent_id=trace.format_span_id(span.parent.span_id) if span.parent else "",
        start=(span.start_time or 0) / 1e9,
        end=(span.end_time or 0) / 1e9,
        failed=span.status.status_code is StatusCode.ERROR,
        attributes={key: str(value) for key, value in (span.attributes or {}).items()},
    )


class _Current:
    """The tracer in use; ids without recording until `tracing` sets up more."""

    recording = False
    tracer: Tracer = TracerProvider(sampler=ParentBased(ALWAYS_OFF)).get_tracer("kybernate")


@contextmanager
def tracing(
    service: str, *, endpoint: str = "", collector: SpanCollector | None = None
) -> Iterator[None]:
    """Record spans while the block runs: to an OTLP/HTTP endpoint, to a collector, or to both."""
    wanted = bool(endpoint or collector)
    provider = TracerProvider(
        sampler=RECORD_ALL if wanted else ParentBased(ALWAYS_OFF),
        resource=Resource.create({"service.name": service}),
        shutdown_on_exit=False,
    )
    if endpoint:
        exporter = OTLPSpanExporter(endpoint=traces_url(endpoint), timeout=5)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    if collector:
        provider.add_span_processor(SimpleSpanProcessor(collector))
    before = _Current.tracer, _Current.recording
    _Current.tracer, _Current.recording = provider.get_tracer("kybernate"), wanted
    try:
        yield
    finally:
        _Current.tracer, _Current.recording = before
        provider.shutdown()


def traces_url(endpoint: str) -> str:
    """The URL of an OTLP/HTTP receiver's traces, whether only its base was given or all of it."""
    return endpoint if endpoint.endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"


@contextmanager
def span(
    name: str,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
) -> Iterator[Span]:
    """A span around the block; an exception that leaves it marks it as failed.

    Where nothing is recorded, one span that gives its id is enough for a whole trace.
    """
    around = trace.get_current_span()
    if not _Current.recording and around.get_span_context().is_valid:
        yield around
        return
    with _Current.tracer.start_as_current_span(name, attributes=attributes, kind=kind) as current:
        yield current


def mark_failed(message: str) -> None:
    """Mark the current span as failed, where no exception tells it."""
    trace.get_current_span().set_status(Status(StatusCode.ERROR, message))


def inject(headers: dict[str, str]) -> dict[str, str]:
    """The headers with the current trace context in them (the same mapping)."""
    current = trace.get_current_span().get_span_context()
    if current.trace_state:
        _PROPAGATOR.inject(headers)
    elif current.is_valid:
        headers[TRACEPARENT] = (
            f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"
        )
    return headers


def traceparent() -> str:
    """The current trace context as a W3C `traceparent`; empty without one."""
    return inject({}).get(TRACEPARENT, "")


def extract(headers: Mapping[str, str]) -> Context:
    known = {key.lower(): value for key, value in headers.items()}
    if TRACESTATE in known:
        return _PROPAGATOR.extract(known)
    return _context_of(known.get(TRACEPARENT, ""))


@lru_cache(maxsize=4096)
def _context_of(parent: str) -> Context:
    """The same few contexts come again and again while their jobs are under way."""
    return _PROPAGATOR.extract({TRACEPARENT: parent})


@contextmanager
def continuing(headers: Mapping[str, str] | str) -> Iterator[None]:
    """Go on with the trace of a message's headers, or of a bare `traceparent`, in the block."""
    wanted = _context_of(headers) if isinstance(headers, str) else extract(headers)
    token = otel_context.attach(wanted)
    try:
        yield
    finally:
        otel_context.detach(token)


def trace_id() -> str:
    """The current trace's id, hexadecimal; empty without one."""
    current = trace.get_current_span().get_span_context()
    return trace.format_trace_id(current.trace_id) if current.is_valid else ""


_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A JSON object per line: time, level, logger, message, trace_id, and what `extra` has."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := trace_id():
            line["trace_id"] = current
        line |= {key: value for key, value in vars(record).items() if key not in _ORDINARY}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """For people: time, level, message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


def log_to(
    stream: TextIO | None = None, *, level: str = "INFO", json: bool = True
) -> logging.Handler:
    """Send this process's logs to a stream (default: standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if json else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    return handler
