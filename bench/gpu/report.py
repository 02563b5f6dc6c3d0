"""Medians, ratios and their lines. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.gpu.sides import DRIVER_CHECKPOINT, DUMP, SEAL, STEPS, TOTAL, Seconds

BARE = "bare"
CONTENT_STORE = "content store"
KYBERNATE = "kybernate"

Rounds = Mapping[str, Sequence[Seconds]]
"""By side, what each round took."""


def medians(rounds: Sequence[Seconds]) -> Seconds:
    return {
        step: statistics.median(one[step] for one in rounds) for step in STEPS if step in rounds[0]
    }


def ratios(rounds: Rounds) -> dict[str, float]:
    """`total_ratio`: ours to bare. `content_store_ratio`: containerd's dump to our dump and seal.

    `way_down_ratio` is the same with the driver's checkpoint in it, as users wait for it.
    """
    bare, packed, ours = (medians(rounds[side]) for side in (BARE, CONTENT_STORE, KYBERNATE))
    written = ours[DUMP] + ours[SEAL]
    down = packed[DRIVER_CHECKPOINT] + packed[DUMP]
    return {
        "total_ratio": ours[TOTAL] / bare[TOTAL],
        "content_store_ratio": packed[DUMP] / written,
        "way_down_ratio": down / (ours[DRIVER_CHECKPOINT] + written),
    }


def lines(gib: float, rounds: Rounds) -> list[str]:
    by_side = {side: medians(times) for side, times in rounds.items()}
    count = len(rounds[KYBERNATE])
    head = "".join(f"{side:>16}" for side in by_side)
    told = [f"{gib:g} GiB, medians of {count} rounds, seconds", f"  {'':<18}{head}"]
    for step in STEPS:
        cells = (
            f"{times[step]:16.3f}" if step in times else f"{'':16}" for times in by_side.values()
        )
        told.append(f"  {step:<18}{''.join(cells)}")
    found = ratios(rounds)
    return [
        *told,
        f"  total, kybernate to bare                  {found['total_ratio']:7.3f}",
        f"  content store's dump to our dump and seal {found['content_store_ratio']:7.2f}",
        f"  the same with the driver's checkpoint     {found['way_down_ratio']:7.2f}",
    ]


def result(gib: float, rounds: Rounds) -> dict[str, Any]:
    return {
        "gib": gib,
        "rounds": len(rounds[KYBERNATE]),
        **{name: round(ratio, 3) for name, ratio in ratios(rounds).items()},
        "medians": {
            side: {step: round(seconds, 3) for step, seconds in medians(times).items()}
            for side, times in rounds.items()
        },
    }
