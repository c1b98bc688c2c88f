"""Length buckets: the few lengths that sequences are filled up to so that least is computed for nothing.

A sequence is padded to the end of its bucket, the first one that it fits into. For given lengths and a number K of
buckets, dynamic programming finds the ends with the fewest padded tokens. With candidates c_1 < … < c_n for ends and
N_j sequences of at most c_j tokens,

    cost_k(j) = min over i < j of  cost_{k-1}(i) + c_j · (N_j - N_i)

is what the sequences up to c_j cost in k buckets, the last of which ends at c_j. For a fixed k each i is a straight
line in c_j, with slope -N_i, so the minima of all j are found in one pass along the lower hull of the lines (the
convex hull trick of dynamic programming). That is O(K · n) in exact integers, for all numbers up to K at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["MIN_GAIN", "Buckets", "best_buckets", "enough"]

MIN_GAIN = 0.01
"""Padding that a further bucket has to save, as a share of the tokens themselves: each one costs a profile, which
takes its time to build and its memory to hold, and splits the requests that could be joined."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """The ends of the best buckets of one number, and what they cost."""

    ends: tuple[int, ...]
    """Ascending; the last one is the longest sequence that is served."""
    tokens: int
    """Of all sequences, without padding."""
    padded_tokens: int

    @property
    def waste(self) -> float:
        """Padding waste: the share of the computed tokens that are padding."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0


def best_buckets(counts: Mapping[int, int], *, longest: int, multiple: int = 1, most: int) -> list[Buckets]:
    """The best 1, 2, … buckets for sequences counted by length, at most `most` or as many as there are ends.

    Every number of buckets ends at `longest`, so that all of what is served has its bucket; the other ends are
    multiples of `multiple`. Raises ValueError if there is no sequence, or one is empty or too long.
    """
    seen = sorted(length for length, count in counts.items() if count)
    if not seen or seen[0] < 1 or seen[-1] > longest:
        raise ValueError(f"lengths {seen[:1]} to {seen[-1:]} are not all from 1 to {longest}")
    ends = sorted({min(-(-length // multiple) * multiple, longest) for length in seen} | {longest})
    joined = [0] * len(ends)
    for length in seen:
        joined[bisect_left(ends, length)] += counts[length]
    totals: list[int] = []
    for count in joined:
        totals.append(count + (totals[-1] if totals else 0))
    tokens = sum(length * counts[length] for length in seen)
    costs = [end * total for end, total in zip(ends, totals, strict=True)]
    before: list[list[int]] = []
    found = [Buckets((longest,), tokens, costs[-1])]
    for num in range(2, min(most, len(ends)) + 1):
        costs, chosen = _one_more(ends, totals, costs, first=num - 1)
        before.append(chosen)
        found.append(Buckets(_traced(ends, before), tokens, costs[-1]))
    return found


def enough(found: Sequence[Buckets], min_gain: float = MIN_GAIN) -> Buckets:
    """The first number of buckets after which one more saves less padding than `min_gain` of the tokens.

    Savings fall with the number of buckets, so none further on would save more either.
    """
    for here, more in pairwise(found):
        if here.padded_tokens - more.padded_tokens < min_gain * here.tokens:
            return here
    return found[-1]


def _one_more(
    ends: Sequence[int], totals: Sequence[int], costs: Sequence[int], *, first: int
) -> tuple[list[int], list[int]]:
    """The costs with one bucket more, and for each end where the bucket before it ends; nothing before `first`."""
    more, chosen = [0] * len(ends), [0] * len(ends)
    hull: list[int] = []  # lines that are the lowest somewhere, steepest last
    at = 0
    for j in range(first, len(ends)):
        new = j - 1
        while len(hull) > at + 1 and _hidden(hull[-2], hull[-1], new, totals, costs):
            hull.pop()
        hull.append(new)
        x = ends[j]
        # Ends ascend, and steeper lines are lower further on: what was passed is never the lowest again.
        while at + 1 < len(hull) and _height(hull[at + 1], x, totals, costs) <= _height(hull[at], x, totals, costs):
            at += 1
        more[j] = _height(hull[at], x, totals, costs) + x * totals[j]
        chosen[j] = hull[at]
    return more, chosen


def _height(i: int, x: int, totals: Sequence[int], costs: Sequence[int]) -> int:
    return costs[i] - totals[i] * x


def _hidden(one: int, two: int, three: int, totals: Sequence[int], costs: Sequence[int]) -> bool:
    """Whether line two is nowhere below both others: line three is under line one already where two comes under it."""
    return (costs[three] - costs[one]) * (totals[two] - totals[one]) <= (costs[two] - costs[one]) * (
        totals[three] - totals[one]
    )


def _traced(ends: Sequence[int], before: Sequence[Sequence[int]]) -> tuple[int, ...]:
    at = len(ends) - 1
    found = [ends[at]]
    for chosen in reversed(before):
        at = chosen[at]
        found.append(ends[at])
    return tuple(reversed(found))
