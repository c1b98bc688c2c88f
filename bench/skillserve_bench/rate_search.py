"""The highest rate at which a bound is kept, by bisection of the ratio.

Rates are compared as ratios, since a machine's limit is known to a few per cent and not to so many requests a second.
A probe passes if at least the wanted share of its scheduled requests was answered within the bound: latency at
that quantile is within the bound, and what failed counts as late. A search ends when the least rate that failed is
at most `tolerance` above the greatest that passed, or after `most_probes`.

A search meets a machine in one mood, so there are several, in turns with those of others; from the second on they begin
where the last one ended, and take smaller steps. Noise lets a rate pass that the system does not keep, the more so the
more probes there are; so what searches found on average is measured once more, with another seed and longer, and while
it fails, a lower one is tried: by `tolerance`, by twice as much, and so on, since a machine that has become slow since
fails at every rate near the one that was found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from skillserve_bench.intervals import CONFIDENCE, Estimate, between_rounds, ratio_of

__all__ = ["WIDE", "Bracket", "HighestRate", "search_rate"]

WIDE = 2.0
"""Step of a search that knows little of where the limit is, as a ratio."""


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


@dataclass(frozen=True, slots=True)
class HighestRate:
    """The highest rate that keeps a bound, as searches and a run at what they found left it."""

    kept: float
    """Confirmed; requests a second."""
    refused: float | None
    """Above it: the least that failed, or the mean of the searches; None if one of them met no limit."""
    searched: tuple[float, ...] = ()
    """What each search found."""

    def estimate(self, *, confidence: float = CONFIDENCE) -> Estimate:
        """With an interval: all that lies between kept and refused, and how far searches were apart.

        The confidence is that of the second part (see `between_rounds`); the first has none to name.
        """
        found = between_rounds(self.searched, confidence=confidence)
        low = min([self.kept, *(low for low, _ in found)])
        return Estimate(
            self.kept, low, None if self.refused is None else max([self.refused, *(high for _, high in found)])
        )

    def relative_to(self, other: HighestRate, *, confidence: float = CONFIDENCE) -> Estimate:
        """The ratio of two; each may be wrong half as often, so that both hold with the confidence (Bonferroni)."""
        each = (1 + confidence) / 2
        return ratio_of(self.estimate(confidence=each), other.estimate(confidence=each))

    @property
    def text(self) -> str:
        """To three digits, with its interval."""
        return self.estimate().text(max(3 - len(f"{self.kept:.0f}"), 0))


def search_rate(
    passes: Callable[[float], bool | None], *, start: float, tolerance: float, most_probes: int, step: float = WIDE
) -> Bracket:
    """Search from `start`, which is best a rate near the limit: times `step` until it fails, or less until it passes.

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
            rate /= step
        elif failed is None:
            rate *= step
        elif failed <= passed * (1 + tolerance):
            break
        else:
            rate = (passed * failed) ** 0.5
    return Bracket(passed, failed, num)
