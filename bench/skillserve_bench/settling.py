"""When a run has settled: its warm-up lasts until three windows in a row agree."""

from __future__ import annotations

from collections.abc import Sequence

from skillserve_bench.load.windows import Window

__all__ = ["AGREEING", "LEAST_ANSWERS", "TOLERANCE", "num_warm_up"]

AGREEING = 3
TOLERANCE = 0.10
"""Windows agree if the greatest of their median latencies is at most so much above the least."""

_MOST_SHARE = 2 / 3
"""Of a run that may be warm-up: one that settles as it ends leaves nothing to speak of."""

LEAST_ANSWERS = 5
"""A window with fewer has no median to speak of."""


def num_warm_up(windows: Sequence[Window]) -> int | None:
    """How many windows are warm-up: up to and with the first three in a row that agree; None if none do in time.

    A window without enough answers agrees with nothing. At least a third of the windows is left.
    """
    medians = [
        window.latencies.quantile_us(0.5) if window.latencies.num >= LEAST_ANSWERS else None for window in windows
    ]
    for end in range(AGREEING, int(_MOST_SHARE * len(medians)) + 1):
        last = [median for median in medians[end - AGREEING : end] if median is not None]
        if len(last) == AGREEING and max(last) <= (1 + TOLERANCE) * min(last):
            return end
    return None
