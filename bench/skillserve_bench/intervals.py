"""Confidence intervals of quantiles, rates and ratios, from what happened in windows of time.

A quantile has up to three intervals, and the hull of them is reported:

- By order statistics: the ranks between which the quantile lies follow the binomial distribution, whatever the
  latencies' own is (David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1). Exact for independent values;
  it also says when there are too few: p99.9 needs 3,688 answers for a bound above it at 95 %.
- By bootstrap over windows: latencies of neighbours are not independent, since they stand in one queue. Whole windows
  are drawn anew with replacement, which keeps what is related together (Carlstein, Annals of Statistics 14, 1986).
  It needs windows longer than a queue remembers, and at least MIN_WINDOWS of them; with fewer there is the first only.

- Between rounds: a load that was carried out, or a rate that was searched, several times, other loads in between, has
  met a machine in several moods. Student's interval of the mean of the rounds' logarithms tells how far apart they were
  (Student, Biometrika 6, 1908; of ratios as Welch has it, Biometrika 34, 1947). It needs MIN_ROUNDS.

The first is too narrow for values that hang together, the second for the far tail and for what lasts longer than a
round; hence the hull. The greatest value has no interval: no sample bounds what it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, stdtrit

from skillserve_bench.load.histogram import Histogram, at_share

__all__ = [
    "CONFIDENCE",
    "MIN_ROUNDS",
    "MIN_WINDOWS",
    "Estimate",
    "between_rounds",
    "mean_estimate",
    "order_statistics",
    "quantile_estimate",
    "quantile_ratio",
    "rate_ratio",
    "ratio_of",
]

CONFIDENCE = 0.95
MIN_WINDOWS = 10
MIN_ROUNDS = 3
_RESAMPLES = 2_000

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval; an end is None where the data do not bound it."""

    value: float
    low: float | None = None
    high: float | None = None

    def text(self, digits: int = 2, *, unit: str = "") -> str:
        """`12.3 [11.8, 13.1]`; `?` stands for an end that is not known."""
        low, high = ("?" if end is None else f"{end:.{digits}f}" for end in (self.low, self.high))
        between = "" if self.low is None and self.high is None else f" [{low}, {high}]"
        return f"{self.value:.{digits}f}{unit}{between}"

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Both ends of the interval."""
        return self.low, self.high

    def excludes(self, value: float) -> bool | None:
        """Whether a value is beyond the end on its side; None where that end is not known."""
        end = self.low if value < self.value else self.high
        return None if end is None else (value < end if value < self.value else value > end)

    def widened(self, found: Sequence[tuple[float, float]]) -> Estimate:
        """With the hull of its own interval and others; an end that is not known stays so."""
        low = None if self.low is None else min([self.low, *(low for low, _ in found)])
        return Estimate(self.value, low, None if self.high is None else max([self.high, *(high for _, high in found)]))


def order_statistics(num: int, share: float, *, confidence: float = CONFIDENCE) -> tuple[int | None, int | None]:
    """Ranks (from 1) of `num` sorted values whose values bracket the quantile; None where there is no such rank.

    Each end is wrong with at most (1 - confidence) / 2.
    """
    tail = (1 - confidence) / 2
    # P(B <= k) for B binomial(num, share): the number of values at or below the quantile.
    below = bdtr(np.arange(num), num, share)
    low = int(np.searchsorted(below, tail, side="right"))  # greatest l with P(B <= l - 1) <= tail
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1  # least u with P(B >= u) <= tail
    return (low if low >= 1 else None), (high if high <= num else None)


def quantile_estimate(
    rounds: Sequence[Sequence[Histogram]], share: float, *, seed: int, scale: float = 1e-3
) -> Estimate:
    """A quantile of all durations of the rounds' windows, µs times `scale` (default: in ms); nan if there are none."""
    values, counts_WK = _aligned(list(chain(*rounds)))
    total_K = counts_WK.sum(axis=0)
    num = int(total_K.sum())
    value = float(at_share(values, total_K[None, :], share)[0])
    if not num:
        return Estimate(value)
    sums_K = np.cumsum(total_K)
    low, high = (
        None if rank is None else float(values[np.searchsorted(sums_K, rank)]) for rank in order_statistics(num, share)
    )
    found = between_rounds(_quantiles(values, counts_WK, rounds, share), confidence=CONFIDENCE)
    if low is not None and high is not None and len(counts_WK) >= MIN_WINDOWS:
        found.append(_percentiles(at_share(values, _resampled(counts_WK, np.random.default_rng(seed)), share)))
    low, high = Estimate(value, low, high).widened([(value, value), *found]).ends
    return Estimate(value * scale, None if low is None else scale * low, None if high is None else scale * high)


def mean_estimate(rounds: Sequence[Sequence[float]], *, seed: int) -> Estimate:
    """The mean over the rounds' windows, such as of answers a second, with its interval; nan if there are none."""
    array = np.fromiter(chain(*rounds), np.float64)
    if not len(array):
        return Estimate(float("nan"))
    found = between_rounds(_means(rounds), confidence=CONFIDENCE)
    if len(array) >= MIN_WINDOWS:
        found.append(_percentiles(_resampled_means(array, np.random.default_rng(seed))))
    return _hull(float(array.mean()), found)


def quantile_ratio(
    new: Sequence[Sequence[Histogram]],
    old: Sequence[Sequence[Histogram]],
    share: float,
    *,
    seed: int,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """A quantile of one load's rounds relative to that of another's, each resampled for itself."""
    rng = np.random.default_rng(seed)
    sides = [(rounds, *_aligned(list(chain(*rounds)))) for rounds in (new, old)]
    whole = [float(at_share(values, counts.sum(axis=0)[None, :], share)[0]) for _, values, counts in sides]
    by_round = [_quantiles(values, counts, rounds, share) for rounds, values, counts in sides]
    found = between_rounds(*by_round, confidence=confidence)
    if min(len(counts) for _, _, counts in sides) >= MIN_WINDOWS:
        drawn = [at_share(values, _resampled(counts, rng), share) for _, values, counts in sides]
        found.append(_percentiles(drawn[0] / drawn[1], confidence))
    return _hull(whole[0] / whole[1], found)


def rate_ratio(
    new: Sequence[Sequence[float]], old: Sequence[Sequence[float]], *, seed: int, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean over the windows of one load's rounds relative to that of another's."""
    rng = np.random.default_rng(seed)
    sides = [np.fromiter(chain(*rounds), np.float64) for rounds in (new, old)]
    found = between_rounds(_means(new), _means(old), confidence=confidence)
    if min(map(len, sides)) >= MIN_WINDOWS:
        found.append(_percentiles(_resampled_means(sides[0], rng) / _resampled_means(sides[1], rng), confidence))
    return _hull(float(sides[0].mean() / sides[1].mean()), found)


def ratio_of(new: Estimate, old: Estimate) -> Estimate:
    """The ratio of two figures, which lies between those of opposite ends if both lie within theirs."""
    low = None if new.low is None or old.high is None else new.low / old.high
    high = None if new.high is None or old.low is None else new.high / old.low
    return Estimate(new.value / old.value, low, high)


def _hull(value: float, found: list[tuple[float, float]]) -> Estimate:
    """A figure with the hull of its intervals; without any of them it has none."""
    return Estimate(value, value, value).widened(found) if found else Estimate(value)


def between_rounds(*sides: Sequence[float], confidence: float) -> list[tuple[float, float]]:
    """Student's interval of the rounds' geometric mean, or Welch's of the ratio of two.

    There is none if a side has too few rounds, or one in which nothing happened, which has no logarithm.
    """
    if min(map(len, sides)) < MIN_ROUNDS or not all(map(all, sides)):
        return []
    logs = [np.log(side) for side in sides]
    mean, *other = (float(each.mean()) for each in logs)
    parts = [float(each.var(ddof=1)) / len(each) for each in logs]
    half = 0.0
    if sum(parts):
        freedom = sum(parts) ** 2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, logs, strict=True))
        half = float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(sum(parts))
    return [(math.exp(mean - sum(other) - half), math.exp(mean - sum(other) + half))]


def _means(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.mean(each)) for each in rounds]


def _quantiles(
    values: npt.NDArray[np.float64], counts_WK: Counts, rounds: Sequence[Sequence[Histogram]], share: float
) -> list[float]:
    """A quantile of each round; none if a round has so few answers that it would be its greatest."""
    borders = np.cumsum([0, *map(len, rounds)])
    totals = [counts_WK[begin:end].sum(axis=0) for begin, end in pairwise(borders)]
    if any(total_K.sum() * (1 - share) < 1 for total_K in totals):
        return []
    return [float(at_share(values, total_K[None, :], share)[0]) for total_K in totals]


def _aligned(windows: Sequence[Histogram]) -> tuple[npt.NDArray[np.float64], Counts]:
    """All durations that occur, rising `[K]`, and each window's counts of them `[W, K]`."""
    found = [window.counts() for window in windows]
    values = np.unique(np.concatenate([each for each, _ in found])) if found else np.empty(0)
    counts_WK = np.zeros((len(windows), len(values)), np.int64)
    for row, (occurring, counts) in zip(counts_WK, found, strict=True):
        row[np.searchsorted(values, occurring)] = counts
    return values, counts_WK


def _resampled(counts_WK: Counts, rng: np.random.Generator) -> Counts:
    """Counts of as many windows, drawn with replacement, over and over: `[R, K]`."""
    num = len(counts_WK)
    times_RW = rng.multinomial(num, np.full(num, 1 / num), size=_RESAMPLES)
    # In floating point, where numpy has a matrix product; the counts are far below 2^53.
    summed: Counts = (times_RW.astype(np.float64) @ counts_WK.astype(np.float64)).astype(np.int64)
    return summed


def _resampled_means(values: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    means: npt.NDArray[np.float64] = rng.choice(values, size=(_RESAMPLES, len(values))).mean(axis=1)
    return means


def _percentiles(drawn: npt.NDArray[np.float64], confidence: float = CONFIDENCE) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return float(low), float(high)
