"""From measured sizes to one that cannot be measured: by the law of the algorithm, with the growth that was found.

A measured figure is read in three ways: that it grows by the algorithm's law from the largest size on; that a part of
it is fixed and only the rest grows by the law; and that it grows by the exponent that was found, whatever the law. The
estimate is the first, or the second where there is a fixed part by construction. Its range is the hull of all three and
of the rounds' spread: where caches, allocators or a busy machine make a figure grow otherwise than it should, it is
wide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from skillserve_bench.figures import Spread

__all__ = ["LAWS", "Estimate", "Growth", "Law", "growths"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure that was not measured."""

    value: float
    least: float
    greatest: float

    def scaled(self, factor: float) -> Estimate:
        """So many times as much, `factor` > 0."""
        return Estimate(value=self.value * factor, least=self.least * factor, greatest=self.greatest * factor)

    def plus(self, other: Estimate) -> Estimate:
        """Both together, as if both could be at their ends at once."""
        return Estimate(
            value=self.value + other.value, least=self.least + other.least, greatest=self.greatest + other.greatest
        )

    def inverse(self) -> Estimate:
        """Of seconds, how many in a second."""
        return Estimate(value=1 / self.value, least=1 / self.greatest, greatest=1 / self.least)

    @classmethod
    def of(cls, spread: Spread) -> Self:
        """A measured figure as it is."""
        return cls(value=spread.median, least=spread.least, greatest=spread.greatest)


@dataclass(frozen=True, slots=True)
class Law:
    """How an algorithm's cost grows with its rows: `rows^power · log(rows)^logs`, up to a factor."""

    name: str
    power: float
    logs: int = 0
    fixed: bool = False
    """Whether part of the figure is the same for any number of rows."""
    certain: bool = False
    """Whether the law is beyond doubt, as where bytes of each row are counted."""

    def ratio(self, start: float, end: float) -> float:
        """Cost at `end` rows over cost at `start` rows, both above 1."""
        return math.pow(end / start, self.power) * math.pow(math.log(end) / math.log(start), self.logs)


BYTES = Law("fixed + n", 1, fixed=True, certain=True)
TRAINING = Law("fixed + n", 1, fixed=True)
LINEAR = Law("n", 1)
ROOT = Law("√n", 0.5)
LOGARITHMIC = Law("log n", 0, 1)
LAWS: Mapping[str, Mapping[str, Law]] = {
    kind: {"train": TRAINING, "add": add, "search": search, "batch": search, "memory": BYTES, "disk": BYTES}
    for kinds, add, search in (
        (("flat", "fp16", "sq8", "milvus-lite"), LINEAR, LINEAR),
        # 4·√n lists: each row is compared with all of them, each query with all of them and √n/4 rows in each probed.
        # Training takes 64 samples for each list, and compares them with all lists: linear. That of PQ is the same for
        # any number of rows, and so is that of SQ8 where it is in lists.
        (("ivf-flat", "ivf-sq8", "ivf-pq"), Law("n·√n", 1.5), ROOT),
        # A search takes about log n steps; building is a search for each row (Malkov and Yashunin 2016, section 4.2).
        (("hnsw",), Law("n·log n", 1, 1), LOGARITHMIC),
    )
    for kind in kinds
}
"""Kind of index → figure → its law."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """One figure at several sizes, in rounds; every value is above 0."""

    law: Law
    rows: tuple[int, ...]
    """At least two sizes, smallest first."""
    values: tuple[tuple[float, ...], ...]
    """For each size the figure of every round."""

    def __post_init__(self) -> None:
        if len(self.rows) < 2 or list(self.rows) != sorted(set(self.rows)) or len(self.values) != len(self.rows):
            raise ValueError(f"growth needs two rising sizes or more with their values, not {self.rows}")
        if not all(value > 0 for size in self.values for value in size):
            raise ValueError("a figure that is 0 has no exponent")

    @property
    def exponent(self) -> float:
        """That of the power law which fits the medians of all sizes best, by least squares of logarithms."""
        medians = [Spread.of(size).median for size in self.values]
        slope, _ = np.polyfit(np.log(self.rows), np.log(medians), 1)
        return float(slope)

    @property
    def largest(self) -> Spread:
        """What was measured at the largest size."""
        return Spread.of(self.values[-1])

    def at(self, rows: float) -> Estimate:
        """The figure at another size; see the module."""
        last, measured = self.rows[-1], self.largest
        by_law = self.law.ratio(last, rows)
        with_fixed = self._with_fixed_part(by_law)
        ratios = [by_law, *with_fixed]
        if not self.law.certain:
            ratios.append(math.pow(rows / last, max(self.exponent, 0.0)))
        return Estimate(
            value=measured.median * (statistics.median(with_fixed) if self.law.fixed else by_law),
            least=measured.least * min(ratios),
            greatest=measured.greatest * max(ratios),
        )

    def _with_fixed_part(self, by_law: float) -> list[float]:
        """The ratio for each round, if f(n) = a + b · law(n) goes through its two largest sizes.

        No figure falls where rows are added, so b is at least 0; and none is below 0 where they are fewer.
        """
        before = self.law.ratio(self.rows[-1], self.rows[-2])
        found = []
        for lower, upper in zip(self.values[-2], self.values[-1], strict=True):
            growing = max((1 - lower / upper) / (1 - before), 0.0)
            found.append(1 + (growing if by_law > 1 else min(growing, 1.0)) * (by_law - 1))
        return found


def growths(kind: str, rows: Sequence[int], figures: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Growth]:
    """The growth of every figure of a kind, but of one that was 0, such as the training of what needs none."""
    return {
        name: Growth(law=LAWS[kind][name], rows=tuple(rows), values=tuple(map(tuple, values)))
        for name, values in figures.items()
        if all(value > 0 for size in values for value in size)
    }
