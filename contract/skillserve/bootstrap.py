"""Bootstrap over queries: how far a mean would move with other requests of the same kind.

Requests are drawn with replacement, as many as there are (Efron and Tibshirani, 1993, chapters 13 and 16; for
retrieval, Sakai, SIGIR 2006). A column may hold a metric's value for each query, or the difference between two
systems for each query, which makes it a paired bootstrap. All columns share their draws.

Shape legend: Q queries, C columns, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Difference", "Estimate", "difference", "estimate", "resampled_means"]

Values = npt.NDArray[np.float64]

_TAILS = (2.5, 97.5)
"""Percentiles that bound 95 %."""
_COUNTS_AT_ONCE = 1 << 22
"""Entries of the table of draws that are in memory together, 32 MiB."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % percentile interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean of paired differences, its 95 % percentile interval, and how likely chance alone is."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided; below 0.05 just where the interval leaves out 0, but for rounding."""


def resampled_means(values_QC: Values, *, resamples: int, seed: int) -> Values:
    """Means `[R, C]` of each column over queries drawn with replacement; the same seed gives the same means."""
    num_queries = len(values_QC)
    if not num_queries:
        raise ValueError("no queries to draw from")
    generator = np.random.default_rng(seed)
    means_RC = np.empty((resamples, values_QC.shape[1]))
    step = max(1, _COUNTS_AT_ONCE // num_queries)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn_RQ = generator.integers(num_queries, size=(size, num_queries))
        # How often each query is drawn; a mean is a product with these counts.
        cells_RQ = drawn_RQ + num_queries * np.arange(size)[:, None]
        counts_RQ = np.bincount(cells_RQ.ravel(), minlength=cells_RQ.size).reshape(cells_RQ.shape)
        means_RC[start : start + size] = counts_RQ.astype(np.float64) @ values_QC / num_queries
    return means_RC


def estimate(values_Q: Values, means_R: Values) -> Estimate:
    """The mean of a column and the interval that its resampled means span."""
    low, high = np.percentile(means_R, _TAILS)
    return Estimate(float(values_Q.mean()), float(low), float(high))


def difference(differences_Q: Values, means_R: Values) -> Difference:
    """The mean of a column of paired differences, its interval and its p.

    p is twice the share of resampled means on the rarer side of 0; zeros count on both sides, and the sample itself
    counts as one of the resamples, so p is never 0.
    """
    found = estimate(differences_Q, means_R)
    rarer = int(min((means_R <= 0).sum(), (means_R >= 0).sum()))
    return Difference(found.mean, found.low, found.high, min(1.0, 2 * (rarer + 1) / (len(means_R) + 1)))
