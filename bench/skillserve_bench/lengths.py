"""How long a measurement takes: a smoke run shows that everything works, the others give figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from skillserve_bench.settling import LEAST_ANSWERS

__all__ = ["FULL", "LENGTHS", "MOST_STRETCH", "SHORT", "SMOKE", "Length"]

MOST_STRETCH = 5.0
"""How many times as long a run may take for a slow contender: beyond, a measurement of many probes takes hours."""

LEAST_WINDOWS, LEAST_OF_A_ROUND = 15, 7
"""Of a run whose windows are wider than usual, and of each of its rounds, of which three or four may be warm-up and the
last is not whole: intervals want ten."""

_ROUNDING = 1e-9
"""Three windows of a tenth of a second are a little more than 0.3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Durations in seconds."""

    window_s: float
    run_s: float
    """Each run, its warm-up included."""
    rounds: int
    """In how many parts closed loops are run, other loads in between: what slows a machine for a minute is to meet all
    of them, and intervals are to know of it. As often a rate is searched, as far as `searching_s` allows."""
    probe_s: float
    """Each probe of the search for a rate."""
    rate_tolerance: float
    """A search ends when its bracket is this narrow, as a ratio minus 1."""
    most_probes: int
    overload_s: float
    """How long the server is overloaded; as long before, and three times as long after."""
    num_judged: int
    """Judged requests that contenders beside each other are ranked by, at most."""
    least_requests: int
    """That a run holds, as far as `MOST_STRETCH` allows; 0: durations stand, however slow the contender."""
    least_passes: int
    """Of a queue that a window holds: what stands in one queue hangs together, and intervals take windows for
    independent."""

    @property
    def searching_s(self) -> float:
        """How long searches for a rate may have taken before another is begun: half of all their probes.

        A slow contender's are stretched; the first of them outlasts what slows a machine for a minute.
        """
        return self.rounds * self.most_probes * self.probe_s / 2

    @property
    def least_windows(self) -> int:
        """That a closed loop has, where windows are wider than usual."""
        return max(LEAST_WINDOWS, LEAST_OF_A_ROUND * self.rounds)

    def at(self, per_s: float, *, num_clients: int | None = None, bound_s: float = 0.0) -> Self:
        """The same for something that gets or answers so many requests a second; clients are those of a closed loop.

        Where a run would hold too few of them, everything takes longer, by one factor; and windows are wider, since a
        window of few answers has no median, and one that is shorter than the queue depends on its neighbours, but not
        so wide that there are too few of them for an interval. A run that judges whether latencies keep a bound lasts
        until a rate that is too high by the tolerance has grown a queue as long as the bound.
        """
        if not self.least_requests:
            return self
        least_windows = LEAST_WINDOWS if num_clients is None else self.least_windows
        each = max(LEAST_ANSWERS, self.least_passes * num_clients) if num_clients and self.least_passes else 0
        wanted_s = max(max(self.least_requests, least_windows * each) / per_s, bound_s / self.rate_tolerance)
        stretch = min(max(wanted_s / self.run_s, 1.0), MOST_STRETCH)
        run_s = stretch * self.run_s
        window_s = max(self.window_s, min(max(2 * LEAST_ANSWERS, each) / per_s, run_s / least_windows))
        # Borders of an overload are borders of windows.
        num_windows = math.ceil(stretch * self.overload_s / window_s - _ROUNDING)
        return replace(
            self,
            window_s=window_s,
            run_s=run_s,
            probe_s=stretch * self.probe_s,
            overload_s=num_windows * window_s,
        )


SMOKE = Length(
    window_s=0.2,
    run_s=3.0,
    rounds=1,
    probe_s=1.5,
    rate_tolerance=0.5,
    most_probes=4,
    overload_s=0.6,
    num_judged=20,
    least_requests=5,
    least_passes=0,
)
SHORT = Length(
    window_s=1.0,
    run_s=30.0,
    rounds=4,
    probe_s=15.0,
    rate_tolerance=0.1,
    most_probes=8,
    overload_s=10.0,
    num_judged=100,
    least_requests=60,
    least_passes=2,
)
"""For many contenders side by side: intervals are wider, nothing else is."""
FULL = Length(
    window_s=1.0,
    run_s=60.0,
    rounds=6,
    probe_s=30.0,
    rate_tolerance=0.05,
    most_probes=10,
    overload_s=20.0,
    num_judged=200,
    least_requests=120,
    least_passes=2,
)
LENGTHS = {"smoke": SMOKE, "short": SHORT, "full": FULL}
