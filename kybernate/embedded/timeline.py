"""A trace as text: a line per span, indented below its parent, with a bar where it lay in time."""

import math
from collections.abc import Sequence

from kybernate.telemetry import FinishedSpan

BAR_WIDTH = 32
_FULL, _THIN = "█▏"
_REQUEST = ("http.request.method", "http.route")


def timeline(spans: Sequence[tuple[int, FinishedSpan]]) -> list[str]:
    """The lines of a trace, given as SpanCollector.timeline gives it."""
    if not spans:
        return []
    begin = min(span.start for _, span in spans)
    whole = max(span.end for _, span in spans) - begin
    width = max(2 * depth + len(_title(span)) for depth, span in spans)
    return [_line(depth, span, begin, whole, width) for depth, span in spans]


def _line(depth: int, span: FinishedSpan, begin: float, whole: float, width: int) -> str:
    name = f"{'  ' * depth}{_title(span)}"
    bar = _bar(span.start - begin, span.seconds, whole)
    end = "  FAILED" if span.failed else ""
    return f"{_ms(span.start - begin)}  {_ms(span.seconds)}  {name:<{width}}  |{bar}|{end}".rstrip()


def _title(span: FinishedSpan) -> str:
    """The span's name, and of a request what it was for."""
    request = (span.attributes.get(key, "") for key in _REQUEST)
    return " ".join(part for part in (span.name, *request) if part)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:8.1f} ms"


def _bar(start: float, seconds: float, whole: float) -> str:
    """Cells rounded to whole ones; a span too short for one is a thin line."""
    whole = whole or math.inf
    first = min(BAR_WIDTH - 1, round(start / whole * BAR_WIDTH))
    cells = min(BAR_WIDTH, round((start + seconds) / whole * BAR_WIDTH)) - first
    return (" " * first + (_FULL * cells or _THIN)).ljust(BAR_WIDTH)
