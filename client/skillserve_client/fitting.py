"""The one door to scikit-learn: curves from samples, and what those curves say of samples they have not seen.

Shape legend: S samples, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from skillserve_client.calibration import Curve, Doubles, Feature, Kind, Knot

__all__ = ["assign_folds", "fit_curve", "held_out"]

Bools = npt.NDArray[np.bool_]
Columns = Mapping[Feature, Doubles]

_TOLERANCE, _MOST_STEPS = 1e-10, 10_000
"""Where the solver stops; tight, since a curve is fitted once and its gradient is tested to vanish."""

_ROUNDING = 1e-12
"""Spread of a column, relative to its largest value, that is nothing but the rounding of its mean."""

_PENALTY = 1.0
"""λ of ½ λ Σ coefficient² on standardised features, against a loss summed over samples of mean weight 1: nothing
beside thousands of them, and what keeps coefficients finite where a few samples separate perfectly."""


def fit_curve(kind: Kind, features: Sequence[Feature], columns: Columns, labels: Bools, weights: Doubles) -> Curve:
    """Fit a curve to weighted samples `[S]`, of both labels.

    Isotonic curves step along the Platt curve's linear predictor. Their probabilities stay within [1 / (n + 2),
    (n + 1) / (n + 2)], n samples, Laplace's bounds: no finite number of samples proves a certainty.
    """
    values_SF = np.stack([columns[name] for name in features], axis=1)
    mean = np.average(values_SF, axis=0, weights=weights)
    spread = np.sqrt(np.average((values_SF - mean) ** 2, axis=0, weights=weights))
    # A feature that never varies says nothing; without this its rounding would be blown up to a feature.
    spread[spread <= _ROUNDING * np.abs(values_SF).max(axis=0)] = np.inf
    model = LogisticRegression(C=1 / _PENALTY, tol=_TOLERANCE, max_iter=_MOST_STEPS)
    model.fit((values_SF - mean) / spread, labels, sample_weight=weights)
    coefficients = model.coef_[0] / spread
    platt = Curve(
        kind="platt",
        features=tuple(features),
        coefficients=tuple(map(float, coefficients)),
        intercept=float(model.intercept_[0] - coefficients @ mean),
    )
    if kind == "platt":
        return platt
    least = 1 / ((weights > 0).sum() + 2)
    steps = IsotonicRegression(y_min=least, y_max=1 - least).fit(platt.predictors(columns), labels, weights)
    corners = zip(steps.X_thresholds_, steps.y_thresholds_, strict=True)
    knots = tuple(Knot(z=float(z), probability=float(p)) for z, p in corners)
    return platt.model_copy(update={"kind": "isotonic", "knots": knots})


def held_out(
    kind: Kind,
    features: Sequence[Feature],
    columns_from: Callable[[Bools], Columns],
    labels: Bools,
    weights: Doubles,
    folds: npt.NDArray[np.int64],
) -> tuple[Doubles, Doubles]:
    """Linear predictors and probabilities `[S]`, each from a curve fitted without the sample's own fold.

    `columns_from` gives the features of all samples to somebody who has seen the marked ones `[S]`: those may depend on
    what is known, and must not know the fold either.
    """
    z, p = np.full((2, len(labels)), math.nan)
    for fold in np.unique(folds):
        inside, outside = folds != fold, folds == fold
        columns = columns_from(inside)
        seen = {name: columns[name][inside] for name in features}
        curve = fit_curve(kind, features, seen, labels[inside], weights[inside])
        z[outside] = curve.predictors({name: columns[name][outside] for name in features})
        p[outside] = curve.at(z[outside])
    return z, p


def assign_folds(
    outcomes: Sequence[str], groups: npt.NDArray[np.int64], *, num_folds: int, seed: int
) -> npt.NDArray[np.int64]:
    """A fold `[S]` for every sample: groups stay together, each fold gets its share of every outcome."""
    folds = np.empty(len(groups), np.int64)
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    for number, (_, outside) in enumerate(splitter.split(groups, outcomes, groups)):
        folds[outside] = number
    return folds
