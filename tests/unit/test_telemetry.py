import io
import json
import logging
from collections.abc import Iterator

import pytest

from kybernate import telemetry
from kybernate.telemetry import SpanCollector


@pytest.fixture
def collector() -> Iterator[SpanCollector]:
    collector = SpanCollector()
    with telemetry.tracing("test", collector=collector):
        yield collector


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers, root.level)
    stream = io.StringIO()
    telemetry.log_to(stream)
    yield stream
    root.handlers, root.level = before


def test_a_timeline_is_a_tree_in_the_order_of_time(collector: SpanCollector) -> None:
    with telemetry.span("request"):
        trace_id = telemetry.trace_id()
        with telemetry.span("first"), telemetry.span("inner", {"kybernate.step": "dump"}):
            pass
        with telemetry.span("second"):
            pass
    timeline = [(depth, span.name) for depth, span in collector.timeline(trace_id)]
    assert timeline == [(0, "request"), (1, "first"), (2, "inner"), (1, "second")]
    [inner] = [span for span in collector.spans(trace_id) if span.name == "inner"]
    assert inner.attributes == {"kybernate.step": "dump"}
    assert inner.service == "test"
    assert inner.seconds >= 0


def test_other_traces_stay_out_of_a_timeline(collector: SpanCollector) -> None:
    with telemetry.span("one"):
        trace_id = telemetry.trace_id()
    with telemetry.span("other"):
        pass
    assert [span.name for _, span in collector.timeline(trace_id)] == ["one"]


def test_what_raises_or_is_marked_has_failed(collector: SpanCollector) -> None:
    def fail() -> None:
        with telemetry.span("raises"):
            traces.append(telemetry.trace_id())
            raise ValueError("x")

    traces: list[str] = []
    with pytest.raises(ValueError, match="x"):
        fail()
    with telemetry.continuing({}), telemetry.span("marked"):
        other = telemetry.trace_id()
        telemetry.mark_failed("why")
    assert [span.failed for span in collector.spans(traces[0])] == [True]
    assert [span.failed for span in collector.spans(other)] == [True]


def test_a_trace_goes_on_behind_a_message(collector: SpanCollector) -> None:
    with telemetry.span("sender"):
        headers = telemetry.inject({"other": "kept"})
    assert headers["other"] == "kept"
    with telemetry.continuing({"Traceparent": headers["traceparent"]}), telemetry.span("receiver"):
        trace_id = telemetry.trace_id()
    assert [(depth, span.name) for depth, span in collector.timeline(trace_id)] == [
        (0, "sender"),
        (1, "receiver"),
    ]


def test_a_bare_traceparent_is_enough() -> None:
    with telemetry.span("sender"):
        wanted, traceparent = telemetry.trace_id(), telemetry.traceparent()
    with telemetry.continuing(traceparent):
        assert telemetry.trace_id() == wanted


def test_a_trace_state_goes_along() -> None:
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    with telemetry.continuing({"traceparent": parent, "tracestate": "vendor=x"}):
        assert telemetry.inject({}) == {"traceparent": parent, "tracestate": "vendor=x"}
    with telemetry.continuing(parent):
        assert telemetry.inject({}) == {"traceparent": parent}


@pytest.mark.parametrize("headers", ["", "garbage", {"traceparent": "00-zz-zz-01"}, {}])
def test_a_context_that_is_none_starts_no_trace(headers: str | dict[str, str]) -> None:
    with telemetry.continuing(headers):
        assert telemetry.trace_id() == ""
        assert telemetry.traceparent() == ""


def test_spans_have_ids_though_nobody_records_them() -> None:
    with telemetry.span("request"):
        assert len(telemetry.trace_id()) == 32


@pytest.mark.parametrize("endpoint", ["http://h:1", "http://h:1/", "http://h:1/v1/traces"])
def test_an_endpoint_may_be_base_or_whole(endpoint: str) -> None:
    assert telemetry.traces_url(endpoint) == "http://h:1/v1/traces"


def test_a_log_line_is_json_with_the_trace(logs: io.StringIO) -> None:
    with telemetry.span("request"):
        logging.getLogger("k").warning("hello %s", "you", extra={"action": "a"})
        trace_id = telemetry.trace_id()
    line = json.loads(logs.getvalue())
    assert line["message"] == "hello you"
    assert (line["level"], line["logger"], line["action"]) == ("warning", "k", "a")
    assert line["trace_id"] == trace_id


def test_a_logged_exception_stays_one_line(logs: io.StringIO) -> None:
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("k").exception("failed")
    [line] = logs.getvalue().splitlines()
    assert "ValueError: x" in json.loads(line)["exception"]
