"""One stage's curves: which features, which kind, which threshold, all by what held-out requests say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from skillserve.settings import CalibrateSettings
from skillserve_client.calibration import (
    KINDS,
    Bin,
    Curve,
    Doubles,
    Feature,
    Fit,
    Kind,
    StageCalibration,
    StageName,
)
from skillserve_client.fitting import assign_folds, fit_curve, held_out
from skillserve_client.reliability import (
    cut_for,
    fit_of,
    log_losses,
    point_at,
    points_along,
    reliability,
)
from skillserve_client.samples import Samples, Weights

__all__ = ["fit_stage", "tried"]

Choice = TypeVar("Choice")

_FEATURE_SETS: dict[StageName, tuple[tuple[Feature, ...], ...]] = {
    "embed": (
        ("score",),
        ("score", "background"),
        ("score", "gap", "background"),
        ("score", "gap", "lead", "background"),
        ("score", "leaning"),
        ("score", "background", "leaning"),
        ("score", "gap", "lead", "background", "leaning"),
    ),
    "rerank": (
        ("score",),
        ("score", "similarity"),
        ("score", "background"),
        ("score", "gap", "background"),
        ("score", "similarity", "gap", "lead", "background"),
        ("score", "leaning"),
        ("score", "background", "leaning"),
        ("score", "similarity", "gap", "lead", "background", "leaning"),
    ),
}
"""Tried in this order, small ones first; in an embed-only answer the score is the first stage's."""


def tried(stage: StageName) -> frozenset[str]:
    """The sets of features that a fit of this stage chooses from, as `StageCalibration.feature_losses` names them."""
    return frozenset(map("+".join, _FEATURE_SETS[stage]))


def fit_stage(samples: Samples, stage: StageName, depth: int, settings: CalibrateSettings) -> StageCalibration:
    """Choose features, then the kind of either curve, by held-out log loss; fit them on everything.

    Samples with left-out skills take part in fitting and judge nothing: that no other skill fits them is a guess.
    """
    y = samples.labels
    folds = assign_folds(samples.outcomes, samples.groups, num_folds=settings.num_folds, seed=settings.seed)
    weights = Weights(none_share=settings.none_share, left_out_share=settings.left_out_share).of(samples.outcomes)
    verified = samples.where("answerable", "none")
    judges = Weights(none_share=settings.none_share, left_out_share=0.0).of(samples.outcomes)

    def unseen(kind: Kind, features: Sequence[Feature]) -> tuple[Doubles, Doubles]:
        return held_out(kind, features, samples.known_from, y, weights, folds)

    losses = {features: log_losses(unseen("platt", features)[1], y)[verified] for features in _FEATURE_SETS[stage]}
    features = _simplest_as_good(losses, judges[verified])
    z, _ = unseen("platt", features)  # isotonic curves step along the same predictors
    p = {each: unseen(each, features)[1] for each in KINDS}
    kind = _simplest_as_good({each: log_losses(p[each], y)[verified] for each in KINDS}, judges[verified])
    request = fit_curve(kind, features, samples.known_from(np.ones(len(y), bool)), y, weights)
    outcome = (request, z[verified], y[verified], samples.top_fits[verified], settings.none_share)
    cut = cut_for(z[samples.where("none")], settings.false_injection)
    left_out = z[samples.where("left out")]
    hit, hit_fits = _fit_hits(samples, judges, folds)
    return StageCalibration(
        depth=depth,
        request=request,
        hit=hit,
        cut=cut,
        threshold=float(request.at(cut)),
        at_threshold=point_at(cut, *outcome),
        left_out_injected=float((left_out >= cut).mean()) if len(left_out) else 0.0,
        request_fits={each: fit_of(p[each][verified], y[verified], judges[verified]) for each in KINDS},
        hit_fits=hit_fits,
        feature_losses={"+".join(names): _mean(loss, judges[verified]) for names, loss in losses.items()},
        points=points_along(*outcome),
        bins=tuple(
            Bin(share=share, probability=mean, rate=rate)
            for share, mean, rate in reliability(p[kind][verified], y[verified], judges[verified])
        ),
    )


def _fit_hits(samples: Samples, judges: Doubles, folds: npt.NDArray[np.int64]) -> tuple[Curve, dict[Kind, Fit]]:
    """The curve of single hits, which know nothing but their score."""
    weights = judges[samples.hit_owners]
    weights = weights / weights.mean()
    features: tuple[Feature, ...] = ("score",)
    columns: dict[Feature, Doubles] = {"score": samples.hit_scores}
    y = samples.hit_fits
    p = {kind: held_out(kind, features, lambda _: columns, y, weights, folds[samples.hit_owners])[1] for kind in KINDS}
    kind = _simplest_as_good({each: log_losses(p[each], y) for each in KINDS}, weights)
    return fit_curve(kind, features, columns, y, weights), {each: fit_of(p[each], y, weights) for each in KINDS}


def _simplest_as_good(losses: Mapping[Choice, Doubles], weights: Doubles) -> Choice:
    """The first choice that is within one standard error of the best one (Breiman et al. 1984).

    The standard error is that of the weighted mean of paired differences, so it shrinks where two choices agree.
    """
    means = {choice: _mean(loss, weights) for choice, loss in losses.items()}
    best = min(means, key=lambda choice: means[choice])
    shares = weights / weights.sum()
    for choice, loss in losses.items():
        behind = means[choice] - means[best]
        if behind <= np.sqrt((shares**2 * (loss - losses[best] - behind) ** 2).sum()):
            return choice
    return best


def _mean(values: Doubles, weights: Doubles) -> float:
    return float(np.average(values, weights=weights))
