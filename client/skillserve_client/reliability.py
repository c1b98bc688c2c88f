"""How good probabilities are, and what cuts do: small functions of arrays, in numpy alone.

Shape legend: S samples with probabilities p, labels y and weights w.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from skillserve_client.calibration import Curve, Doubles, Fit, Point

__all__ = [
    "brier",
    "cut_for",
    "ece",
    "fit_of",
    "least_none",
    "log_losses",
    "point_at",
    "points_along",
    "reliability",
    "wilson",
]

Bools = npt.NDArray[np.bool_]

NUM_BINS = 10
_NUM_POINTS = 100
_Z95 = 1.959964
"""Quantile of the normal distribution for an interval of 95 %."""
_LEAST = 1e-12
"""Lowest probability that the log loss tells apart; a logistic function in float64 reaches 0 and 1."""


def log_losses(p: Doubles, y: Bools) -> Doubles:
    """-ln of the probability that was given to what happened, `[S]`."""
    given = np.clip(np.where(y, p, 1 - p), _LEAST, 1.0)
    return np.asarray(-np.log(given), np.float64)


def brier(p: Doubles, y: Bools, w: Doubles) -> float:
    """Weighted mean of (p - y)² (Brier 1950)."""
    return float(np.average((p - y) ** 2, weights=w))


def reliability(p: Doubles, y: Bools, w: Doubles, num_bins: int = NUM_BINS) -> list[tuple[float, float, float]]:
    """Bins of equal weight along p: share of the weight, mean probability, share of y = 1; empty bins are left out.

    A sample belongs to the bin in which the middle of its weight falls, after sorting by p.
    """
    order = np.argsort(p, kind="stable")
    p, y, w = p[order], y[order], w[order] / w.sum()
    bins = np.minimum((num_bins * (np.cumsum(w) - w / 2)).astype(int), num_bins - 1)
    shares, means, rates = (np.bincount(bins, terms, num_bins) for terms in (w, w * p, w * y))
    full = shares > 0
    columns = (shares[full], means[full] / shares[full], rates[full] / shares[full])
    # Quotients of sums can exceed 1 by their rounding.
    return list(zip(*(np.minimum(column, 1.0).tolist() for column in columns), strict=True))


def ece(p: Doubles, y: Bools, w: Doubles) -> float:
    """Expected calibration error: Σ share of a bin · |mean probability - share of y = 1|, 10 bins of equal weight.

    Naeini et al. 2015, with bins of equal mass instead of equal width (Nixon et al. 2019), which a crowd near 0 or 1
    cannot empty. It is biased upwards for few samples: perfect probabilities do not measure 0.
    """
    error = sum(share * abs(mean - rate) for share, mean, rate in reliability(p, y, w))
    return min(error, 1.0)


def fit_of(p: Doubles, y: Bools, w: Doubles) -> Fit:
    """All three figures."""
    return Fit(log_loss=float(np.average(log_losses(p, y), weights=w)), brier=brier(p, y, w), ece=ece(p, y, w))


def wilson(num: int, of: int) -> tuple[float, float]:
    """The 95 % score interval of a share, num of `of` (Wilson 1927).

    A bootstrap of thirty requests that all went well would say that the thirty-first goes well with certainty.
    """
    if not of:
        return 0.0, 1.0
    share, spread = num / of, _Z95**2 / of
    middle = (share + spread / 2) / (1 + spread)
    half = _Z95 / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    return (middle - half if num else 0.0), (middle + half if num < of else 1.0)  # the ends without their rounding


def least_none(false_injection: float) -> int:
    """Fewest requests that nothing fits from which a cut for this false injection can be chosen."""
    return math.ceil(1 / false_injection - 1 - 1e-9)


def cut_for(z_none: Doubles, false_injection: float) -> float:
    """The lowest cut at which a new request that nothing fits is answered with at most this probability.

    With n such requests it stands just above the j-th highest predictor, j = ⌊false_injection · (n + 1)⌋: a new one
    from the same source ranks above it with probability at most j / (n + 1) (split conformal prediction, Vovk et al.
    2005). Raises ValueError for fewer than `least_none`.
    """
    j = math.floor(false_injection * (len(z_none) + 1) + 1e-9)
    if j < 1:
        raise ValueError(f"{len(z_none)} requests are too few for a false injection of {false_injection}")
    return float(np.nextafter(np.sort(z_none)[-j], np.inf))


def point_at(cut: float, curve: Curve, z: Doubles, y: Bools, top_fits: Bools, none_share: float) -> Point:
    """What a cut does to requests with predictors z `[S]`, at the assumed share of those that nothing fits."""
    answered = z >= cut
    injected, kept = float(answered[~y].mean()), float(answered[y].mean())
    right = float((answered & top_fits)[y].mean())
    coverage = min(none_share * injected + (1 - none_share) * kept, 1.0)
    wrong = coverage - (1 - none_share) * right
    return Point(
        threshold=float(curve.at(cut)),
        coverage=coverage,
        risk=min(max(wrong / coverage, 0.0), 1.0) if coverage else 0.0,
        injected=injected,
        lost=1 - kept,
    )


def points_along(curve: Curve, z: Doubles, y: Bools, top_fits: Bools, none_share: float) -> tuple[Point, ...]:
    """The risk-coverage curve, at quantiles of the predictors, by rising threshold."""
    cuts = np.unique(np.quantile(z, np.linspace(0, 1, _NUM_POINTS), method="higher"))
    return tuple(point_at(float(cut), curve, z, y, top_fits, none_share) for cut in cuts)
