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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean

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
    def found(self) -> float | None:
        """What passed; where nothing did, what failed, since no more could have been found; None without a verdict."""
        return self.failed if self.passed is None else self.passed


@dataclass(frozen=True, slots=True)
class HighestRate:
    """The highest rate that keeps a bound, as searches and a run at what they found left it."""

    kept: float
    """Requests a second."""
    refused: float | None
    """Above it: the least that failed, or the mean of the searches; None if one of them met no limit."""
    searched: tuple[float, ...] = ()
    """What each search found, see `Bracket.found`."""

    @classmethod
    def of(cls, brackets: Sequence[Bracket]) -> HighestRate | None:
        """What searches found on average, to be confirmed; None if nothing passed."""
        passed = [each.passed for each in brackets if each.passed is not None]
        if not passed:
            return None
        failed = [each.failed for each in brackets if each.passed is not None and each.failed is not None]
        return cls(
            geometric_mean(passed),
            geometric_mean(failed) if len(failed) == len(passed) else None,
            tuple(each.found for each in brackets if each.found is not None),
        )

    def lower(self, by: float) -> HighestRate:
        """The next to be tried, where this one was not confirmed."""
        return replace(self, kept=self.kept / by, refused=self.kept)

    @property
    def estimate(self) -> Estimate:
        """With an interval: what lies between kept and refused, and how far searches were apart.

        Of MIN_ROUNDS searches that is Student's, at 95 %; of fewer what they found, with no confidence to name.
        """
        between = between_rounds(self.searched, confidence=CONFIDENCE)
        if not between and self.searched:
            between = [(min(self.searched), max(self.searched))]
        return self._open.widened(between)

    def relative_to(self, other: HighestRate, *, confidence: float = CONFIDENCE) -> Estimate:
        """The ratio of two: what they leave open, and Welch's interval of the searches.

        Where one has fewer than MIN_ROUNDS searches it is that of opposite ends of both, with no confidence to name.
        """
        between = between_rounds(self.searched, other.searched, confidence=confidence)
        if between:
            return ratio_of(self._open, other._open).widened(between)
        return ratio_of(self.estimate, other.estimate)

    @property
    def text(self) -> str:
        """To three digits, with its interval."""
        return self.estimate.text(max(2 - math.floor(math.log10(self.kept)), 0))

    @property
    def _open(self) -> Estimate:
        return Estimate(self.kept, self.kept, self.refused)


def search_rate(
    passes: Callable[[float], bool | None], *, start: float, tolerance: float, most_probes: int, step: float = WIDE
) -> Bracket:
    """Search from `start`, which is best a rate near the limit: times `step` until it fails, or less until it passes.

    `passes` answers None to end the search: where no lower rate could pass.
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
