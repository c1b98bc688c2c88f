"""From requests whose outcome is known to a calibrated bundle: score, choose, fit, publish.

Everything is scored against the bundle's own whole catalogue, since the highest of many scores is higher: a
threshold found on a hundred skills fails on ten thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skillserve.config import CalibrateSettings, IndexSettings, SearchSettings
from skillserve.console import progress
from skillserve.errors import BundleError
from skillserve_client.asked import read_known
from skillserve_client.bundle import Bundle, live_version, open_bundle, publish, read_files
from skillserve_client.calibration import (
    EMBED_DEPTH,
    KINDS,
    Bin,
    Calibration,
    Curve,
    Doubles,
    Feature,
    Fit,
    Kind,
    StageCalibration,
    StageName,
)
from skillserve_client.fitting import assign_folds, fit_curve, held_out
from skillserve_client.manifest import CALIBRATION_FILE, Manifest
from skillserve_client.plan import DEFAULT_DEPTH
from skillserve_client.reliability import (
    fit_of,
    least_none,
    log_losses,
    point_at,
    points_along,
    reliability,
    threshold_for,
)
from skillserve_client.samples import Samples, Weights, sample, score_requests
from skillserve_client.search import check_models
from skillserve_client.shelf import locked, remove_old
from skillserve_client.wire import Inference

__all__ = ["Calibrated", "calibrate_bundle", "fit_stage"]

_LEAST_ANSWERABLE = 20

_FEATURE_SETS: dict[StageName, tuple[tuple[Feature, ...], ...]] = {
    "embed": (
        ("score",),
        ("score", "background"),
        ("score", "gap", "background"),
        ("score", "gap", "lead", "background"),
    ),
    "rerank": (
        ("score",),
        ("score", "similarity"),
        ("score", "background"),
        ("score", "gap", "background"),
        ("score", "similarity", "gap", "lead", "background"),
    ),
}
"""Tried in this order, small ones first; in an embed-only answer the score is the similarity."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A published calibration."""

    manifest: Manifest
    calibration: Calibration


def calibrate_bundle(
    triton: Inference,
    requests: Path,
    none: Path,
    *,
    qrels: Path | None = None,
    index: IndexSettings | None = None,
    search: SearchSettings | None = None,
    settings: CalibrateSettings | None = None,
) -> Calibrated:
    """Fit curves for every stage that a search of the live bundle may end in, and publish the bundle with them.

    The new version is otherwise the live one. Raises CatalogueError for requests that do not do, BundleError for a
    server with other models or if another bundle became the live one meanwhile, and ServerError; the live bundle is
    untouched by any of them.
    """
    index, search, settings = index or IndexSettings(), search or SearchSettings(), settings or CalibrateSettings()
    live = open_bundle(index.bundles)
    known = read_known(
        live.corpus,
        requests,
        qrels,
        none,
        least_answerable=max(_LEAST_ANSWERABLE, settings.num_folds),
        least_none=max(least_none(settings.false_injection), settings.num_folds),
    )
    check_models(live, {role: triton.served(role) for role in live.digests})
    depth = (search.rerank_depth or DEFAULT_DEPTH) if live.corpus.reranker is not None else 0
    scored = score_requests(live, known.asked, triton, depth, progress)
    depths: dict[StageName, int] = {"embed": EMBED_DEPTH, **({"rerank": depth} if depth else {})}
    with progress("fitting", len(depths)) as bar:
        stages: dict[StageName, StageCalibration] = {}
        for stage, considered in depths.items():
            stages[stage] = fit_stage(sample(scored, stage, considered), stage, considered, settings)
            bar.advance()
    calibration = Calibration(
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        requests_digest=known.digest,
        catalogue_digest=live.manifest.catalogue_digest,
        models=live.digests,
        none_share=settings.none_share,
        left_out_share=settings.left_out_share,
        false_injection=settings.false_injection,
        num_answerable=known.num_answerable,
        num_none=known.num_none,
        stages=stages,
    )
    return Calibrated(manifest=_publish(live, calibration, index), calibration=calibration)


def fit_stage(samples: Samples, stage: StageName, depth: int, settings: CalibrateSettings) -> StageCalibration:
    """Choose features, then the kind of either curve, by held-out log loss; fit them on everything.

    Samples with left-out skills take part in fitting and judge nothing: that no other skill fits them is a guess.
    """
    y, folds = samples.labels, _folds(samples, settings)
    weights = Weights(none_share=settings.none_share, left_out_share=settings.left_out_share).of(samples.outcomes)
    judging = samples.where("answerable", "none")
    judges = np.where(judging, Weights(none_share=settings.none_share, left_out_share=0.0).of(samples.outcomes), 0.0)

    def unseen(kind: Kind, features: Sequence[Feature]) -> Doubles:
        return held_out(kind, features, samples.features, y, weights, folds)

    losses = {features: log_losses(unseen("platt", features), y)[judging] for features in _FEATURE_SETS[stage]}
    features = _smallest_as_good(losses, judges[judging])
    p = {kind: unseen(kind, features) for kind in KINDS}
    fits = {kind: fit_of(p[kind][judging], y[judging], judges[judging]) for kind in KINDS}
    kind = _best(fits)
    threshold = threshold_for(p[kind][samples.where("none")], settings.false_injection)
    seen = (p[kind][judging], y[judging], samples.top_fits[judging], settings.none_share)
    left_out = p[kind][samples.where("left out")]
    hit, hit_fits = _fit_hits(samples, judges, folds)
    return StageCalibration(
        depth=depth,
        request=fit_curve(kind, features, samples.features, y, weights),
        hit=hit,
        threshold=threshold,
        at_threshold=point_at(threshold, *seen),
        left_out_injected=float((left_out >= threshold).mean()) if len(left_out) else 0.0,
        request_fits=fits,
        hit_fits=hit_fits,
        feature_losses={
            "+".join(names): float(np.average(loss, weights=judges[judging])) for names, loss in losses.items()
        },
        points=points_along(*seen),
        bins=tuple(
            Bin(share=share, probability=mean, rate=rate)
            for share, mean, rate in reliability(p[kind][judging], y[judging], judges[judging])
        ),
    )


def _folds(samples: Samples, settings: CalibrateSettings) -> npt.NDArray[np.int64]:
    return assign_folds(samples.outcomes, samples.groups, num_folds=settings.num_folds, seed=settings.seed)


def _fit_hits(samples: Samples, judges: Doubles, folds: npt.NDArray[np.int64]) -> tuple[Curve, dict[Kind, Fit]]:
    columns: dict[Feature, Doubles] = {"score": samples.hit_scores}
    weights = judges[samples.hit_owners]
    weights = weights / weights.mean()
    data = (columns, samples.hit_fits, weights)
    hit_folds = folds[samples.hit_owners]
    fits = {kind: fit_of(held_out(kind, ("score",), *data, hit_folds), samples.hit_fits, weights) for kind in KINDS}
    return fit_curve(_best(fits), ("score",), *data), fits


def _best(fits: dict[Kind, Fit]) -> Kind:
    """The kind with the lower log loss; Platt at a tie."""
    return min(KINDS, key=lambda kind: fits[kind].log_loss)


def _smallest_as_good(losses: dict[tuple[Feature, ...], Doubles], weights: Doubles) -> tuple[Feature, ...]:
    """The first set of features that is within one standard error of the best one (Breiman et al. 1984).

    The standard error is that of the weighted mean of paired differences, so it shrinks where two sets agree.
    """
    means = {features: float(np.average(loss, weights=weights)) for features, loss in losses.items()}
    best = min(means, key=lambda features: means[features])
    shares = weights / weights.sum()
    for features, loss in losses.items():
        difference = loss - losses[best]
        behind = means[features] - means[best]
        if behind <= np.sqrt((shares**2 * (difference - behind) ** 2).sum()):
            return features
    return best


def _publish(live: Bundle, calibration: Calibration, index: IndexSettings) -> Manifest:
    content = (calibration.model_dump_json(indent=2) + "\n").encode()
    root = index.bundles
    with locked(root):
        if (live_now := live_version(root)) != live.version:
            raise BundleError(
                f"folder of bundles `{root}`",
                got=f"{live_now or 'no bundle'} as the live one",
                wanted=f"{live.version}, which was calibrated",
                fix="Nothing was published. Run the command again, with the folder that holds CURRENT.",
            )
        manifest = publish(
            root,
            files={**read_files(live), CALIBRATION_FILE: content},
            num_skills=live.manifest.num_skills,
            dim=live.manifest.dim,
            catalogue=live.manifest.catalogue_digest,
            models=live.manifest.models,
        )
        remove_old(root, keep=index.keep, always=frozenset({manifest.version, manifest.parent}))
    return manifest
