"""Medians with their spread, and ratios within one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Spread", "paired_differences", "paired_ratios", "quantile", "times"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of some measurements and the range they fell into."""

    median: float
    least: float
    greatest: float
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one measurement."""
        if not values:
            raise ValueError("there is no spread of nothing")
        return cls(median=quantile(values, 0.5), least=min(values), greatest=max(values), num=len(values))

    @classmethod
    def within_quartiles(cls, values: Sequence[float]) -> Spread:
        """The same with the quartiles as range, for hundreds of values whose extremes are accidents."""
        return cls(
            median=quantile(values, 0.5),
            least=quantile(values, 0.25),
            greatest=quantile(values, 0.75),
            num=len(values),
        )

    def text(self, digits: int) -> str:
        """`median (least to greatest)`, as a table shows it."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f} to {self.greatest:.{digits}f})"


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the measurements lie; between two of them, in proportion."""
    return float(np.quantile(np.asarray(values, np.float64), share))


def paired_ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """`values / base`, round by round: what slows a whole round down cancels."""
    return [value / other for value, other in zip(values, base, strict=True)]


def paired_differences(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """`values - base`, round by round."""
    return [value - other for value, other in zip(values, base, strict=True)]


def times(num: int, what: str) -> str:
    """`1 round`, `7 rounds`."""
    return f"{num} {what}" if num == 1 else f"{num} {what}s"
