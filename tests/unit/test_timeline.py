from hypothesis import example, given
from hypothesis import strategies as st

from kybernate.embedded.timeline import BAR_WIDTH, timeline
from kybernate.telemetry import FinishedSpan, SpanCollector, span, trace_id, tracing


def finished(name: str, start: float, end: float, *, failed: bool = False) -> FinishedSpan:
    return FinishedSpan(
        name=name,
        service="test",
        trace_id="t",
        span_id=name,
        parent_id="",
        start=start,
        end=end,
        failed=failed,
        attributes={},
    )


def test_spans_are_indented_below_their_parent_with_times_and_bars() -> None:
    lines = timeline(
        [
            (0, finished("request", 10.0, 10.4)),
            (1, finished("dump", 10.1, 10.2)),
            (1, finished("seal", 10.2, 10.2, failed=True)),
        ]
    )
    full = "█" * BAR_WIDTH
    assert lines == [
        f"     0.0 ms     400.0 ms  request  |{full}|",
        f"   100.0 ms     100.0 ms    dump   |{' ' * 8}{'█' * 8}{' ' * 16}|",
        f"   200.0 ms       0.0 ms    seal   |{' ' * 16}▏{' ' * 15}|  FAILED",
    ]


def test_nothing_gives_nothing() -> None:
    assert timeline([]) == []


def test_a_collected_trace_becomes_a_timeline() -> None:
    collector = SpanCollector()
    with tracing("test", collector=collector), span("outer"):
        trace = trace_id()
        with span("inner"):
            pass
    lines = timeline(collector.timeline(trace))
    assert [line.split("ms")[2].split("|")[0].rstrip() for line in lines] == [
        "  outer",
        "    inner",
    ]


spans = st.builds(
    lambda start, length: finished("x", start, start + length),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
)


@given(st.lists(st.tuples(st.integers(0, 5), spans), min_size=1, max_size=20))
@example([(0, finished("x", 0.0, 2.2e-309))])
def test_every_span_gets_one_line_and_a_visible_bar(given: list[tuple[int, FinishedSpan]]) -> None:
    lines = timeline(given)
    assert len(lines) == len(given)
    for line in lines:
        bar = line.split("|")[1]
        assert len(bar) == BAR_WIDTH
        assert bar.strip()
