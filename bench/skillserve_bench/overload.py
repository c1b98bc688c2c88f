"""What more load than it can carry does to a server: useful answers, refusals, and how long it takes to recover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skillserve.errors import ServerOverloaded
from skillserve_bench.load.windows import Window
from skillserve_bench.measurement import Measurement, within
from skillserve_bench.settling import AGREEING

__all__ = ["Overload", "weigh_overload"]

_SHED = ServerOverloaded.__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """One overload; shares are of the requests that should have started during it."""

    factor: float
    """Offered rate relative to the saturation rate."""
    offered_per_s: float
    goodput_per_s: float
    """Requests of the overload that were answered within the bound, a second."""
    shed_share: float
    """Refused by the server at once."""
    late_share: float
    """Answered, but beyond the bound."""
    failed_share: float
    """Failed in any other way, timeouts among them."""
    recovery_s: float | None
    """From the end of the overload to the first of three windows in a row in which all but a hundredth of the requests
    are answered within the bound again; None if that was not seen."""
    watched_s: float
    """How long it was watched after the overload."""


def weigh_overload(
    measurement: Measurement, *, factor: float, begin_s: float, end_s: float, wanted_share: float, bound_ms: float
) -> Overload:
    """Read an overload off a run of which it was the part from `begin_s` to `end_s`; both on borders of windows."""
    width = measurement.window_s
    first, after = round(begin_s / width), round(end_s / width)
    during = [window for window in measurement.windows if first <= window.number < after]
    later = [window for window in measurement.windows if window.number >= after and window.num_scheduled]
    num = max(sum(window.num_scheduled for window in during), 1)
    good, answered = within(during, bound_ms), sum(window.latencies.num for window in during)
    shed = sum(window.failures.get(_SHED, 0) for window in during)
    failed = sum(sum(window.failures.values()) for window in during) - shed
    seconds = end_s - begin_s
    return Overload(
        factor=factor,
        offered_per_s=num / seconds,
        goodput_per_s=good / seconds,
        shed_share=shed / num,
        late_share=(answered - good) / num,
        failed_share=failed / num,
        recovery_s=_recovery_s(later, width, end_s, wanted_share, bound_ms),
        watched_s=(later[-1].number + 1) * width - end_s if later else 0.0,
    )


def _recovery_s(
    windows: Sequence[Window], width: float, end_s: float, wanted_share: float, bound_ms: float
) -> float | None:
    well = [within([window], bound_ms) >= wanted_share * window.num_scheduled for window in windows]
    for i in range(len(windows) - AGREEING + 1):
        if all(well[i : i + AGREEING]):
            return max(windows[i].number * width - end_s, 0.0)
    return None
