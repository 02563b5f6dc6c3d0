"""How sizes, times and lists read on a terminal."""

import time
from collections.abc import Iterable, Sequence

from schemas.manifest import PartFacts
from schemas.orders import Part
from schemas.pods import PodRecord

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def size(count: float) -> str:
    unit = 0
    while count >= _STEP and unit < len(_UNITS) - 1:
        count /= _STEP
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def seconds(duration: float) -> str:
    return f"{duration * 1000:.0f} ms" if duration < 1 else f"{duration:.2f} s"


def passed(since: float) -> float:
    return max(0.0, time.time() - since)


def age(since: float) -> str:
    duration = passed(since)
    for unit, length in (("d", _DAY), ("h", _HOUR), ("m", _MINUTE)):
        if duration >= 2 * length:
            return f"{duration / length:.0f}{unit}"
    return f"{duration:.0f}s"


def moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def subject(parts: Iterable[Part | PartFacts], pod: PodRecord | None) -> str:
    """What a checkpoint is of: a pod, or containers of containerd."""
    if pod is not None:
        return f"{pod.namespace}/{pod.name}"
    return ",".join(f"{part.target.namespace}/{part.target.container}" for part in parts)


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table without lines: what `awk` and people can both read."""
    table = [tuple(head), *(tuple(cell or "-" for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values below each other; pairs without a value are left out."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0) + 1
    return "\n".join(f"{name + ':':<{width}}  {value}" for name, value in shown)
