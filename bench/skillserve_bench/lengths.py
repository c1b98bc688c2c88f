"""How long a measurement takes: a smoke run shows that everything works, the others give figures."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "LENGTHS", "SHORT", "SMOKE", "Length"]


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


SMOKE = Length(window_s=0.2, run_s=3.0, probe_s=1.5, rate_tolerance=0.5, most_probes=4, overload_s=1.0, num_judged=20)
SHORT = Length(
    window_s=1.0, run_s=30.0, probe_s=15.0, rate_tolerance=0.1, most_probes=8, overload_s=10.0, num_judged=100
)
"""For many contenders side by side: intervals are wider, nothing else is."""
FULL = Length(
    window_s=1.0, run_s=60.0, probe_s=30.0, rate_tolerance=0.05, most_probes=10, overload_s=20.0, num_judged=200
)
LENGTHS = {"smoke": SMOKE, "short": SHORT, "full": FULL}
