"""How long a measurement takes: a smoke run shows that everything works, the others give figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from skillserve_bench.settling import LEAST_ANSWERS

__all__ = ["FULL", "LENGTHS", "SHORT", "SMOKE", "Length"]

_ROUNDING = 1e-9
"""Three windows of a tenth of a second are a little more than 0.3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Durations in seconds."""

    window_s: float
    run_s: float
    """Each run, its warm-up included."""
    probe_s: float
    """Each probe of the search for a rate."""
    rate_tolerance: float
    """The search ends when its bracket is this narrow, as a ratio minus 1."""
    most_probes: int
    overload_s: float
    """How long the server is overloaded; as long before, and three times as long after."""
    num_judged: int
    """Judged requests that contenders beside each other are ranked by, at most."""
    least_requests: int
    """That a run, a probe, or a stretch around an overload holds, however slow the contender; 0: durations stand."""

    def at(self, per_s: float) -> Self:
        """The same for something that gets or answers so many requests a second.

        Where that is little, windows are wider, since one of few answers has no median, and everything takes longer,
        in whole windows.
        """
        if not self.least_requests:
            return self
        window_s = max(self.window_s, LEAST_ANSWERS / per_s)

        def lasting(seconds: float) -> float:
            if window_s == self.window_s and seconds * per_s >= self.least_requests:
                return seconds
            return math.ceil(max(seconds, self.least_requests / per_s) / window_s - _ROUNDING) * window_s

        return replace(
            self,
            window_s=window_s,
            run_s=lasting(self.run_s),
            probe_s=lasting(self.probe_s),
            overload_s=lasting(self.overload_s),
        )


SMOKE = Length(
    window_s=0.2,
    run_s=3.0,
    probe_s=1.5,
    rate_tolerance=0.5,
    most_probes=4,
    overload_s=0.6,
    num_judged=20,
    least_requests=5,
)
SHORT = Length(
    window_s=1.0,
    run_s=30.0,
    probe_s=15.0,
    rate_tolerance=0.1,
    most_probes=8,
    overload_s=10.0,
    num_judged=100,
    least_requests=20,
)
"""For many contenders side by side: intervals are wider, nothing else is."""
FULL = Length(
    window_s=1.0,
    run_s=60.0,
    probe_s=30.0,
    rate_tolerance=0.05,
    most_probes=10,
    overload_s=20.0,
    num_judged=200,
    least_requests=100,
)
LENGTHS = {"smoke": SMOKE, "short": SHORT, "full": FULL}
