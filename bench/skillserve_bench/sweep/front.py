"""Pareto fronts: points that no other one beats in speed without giving up quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skillserve_bench.intervals import Estimate

__all__ = ["Standing", "dominators", "told_apart"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a point stands."""

    quality: float
    """NDCG@10, more is better."""
    speed: Estimate
    less_is_better: bool
    """True for latencies, False for rates."""

    def beats(self, other: Standing) -> bool:
        """At least as good in both, and better in one: Pareto dominance of the estimates."""
        ours, theirs = self._gain, other._gain
        at_least = self.quality >= other.quality and ours >= theirs
        return at_least and (self.quality > other.quality or ours > theirs)

    @property
    def _gain(self) -> float:
        return -self.speed.value if self.less_is_better else self.speed.value


def dominators(standings: Sequence[Standing]) -> list[int | None]:
    """For each point the place of one that beats it and is itself beaten by none; None for a point of the front."""
    front = [i for i, each in enumerate(standings) if not any(other.beats(each) for other in standings)]
    return [next((place for place in front if standings[place].beats(each)), None) for each in standings]


def told_apart(one: Estimate, other: Estimate) -> bool:
    """Whether two intervals leave each other out; without both ends nothing is told apart.

    That two 95 % intervals do not meet is a stricter test than that their difference excludes 0.
    """
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.high < other.low or other.high < one.low
