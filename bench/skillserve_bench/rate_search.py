"""The highest rate at which a bound is kept, by bisection of the ratio.

Rates are compared as ratios, since a machine's limit is known to a few per cent and not to so many requests a second.
A probe passes if at least the wanted share of its scheduled requests was answered within the bound: latency at
that quantile is within the bound, and what failed counts as late. The search ends when the least rate that failed is
at most `tolerance` above the greatest that passed, or after `most_probes`. Noise lets a rate pass that the system does
not keep, the more so the more probes there are; so the rate found is measured once more, with another seed
and longer, and while it fails, a lower one is tried: by `tolerance`, by twice as much, and so on, since a machine that
has become slow since fails at every rate near the one that was found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Bracket", "search_rate"]


@dataclass(frozen=True, slots=True)
class Bracket:
    """Where a search ended."""

    passed: float | None
    """Greatest rate that passed; None if none did."""
    failed: float | None
    """Least rate above it that failed; None if none did."""
    num_probes: int

    @property
    def closed(self) -> bool:
        """Whether both sides are known."""
        return self.passed is not None and self.failed is not None


_GROWTH = 2.0


def search_rate(passes: Callable[[float], bool | None], *, start: float, tolerance: float, most_probes: int) -> Bracket:
    """Search from `start`, which is best a rate near the limit: doubled until it fails, or halved until it passes.

    `passes` answers None to end the search, such as after Ctrl-C.
    """
    passed: float | None = None
    failed: float | None = None
    rate, num = start, 0
    while num < most_probes:
        verdict = passes(rate)
        if verdict is None:
            break
        num += 1
        if verdict:
            passed = rate
        else:
            failed = rate
        if passed is None:
            rate /= _GROWTH
        elif failed is None:
            rate *= _GROWTH
        elif failed <= passed * (1 + tolerance):
            break
        else:
            rate = (passed * failed) ** 0.5
    return Bracket(passed, failed, num)
