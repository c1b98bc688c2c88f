"""Measuring a published calibration on requests that it was not fitted on; nothing is fitted here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from skillserve.console import progress, talk
from skillserve.errors import BundleError, CatalogueError
from skillserve.settings import CalibrateSettings, IndexSettings
from skillserve_client.asked import read_known
from skillserve_client.bundle import open_bundle
from skillserve_client.calibration import Calibration, StageCalibration, StageName
from skillserve_client.manifest import Record, Sha256, Version
from skillserve_client.reliability import ece, point_at, wilson
from skillserve_client.samples import Samples, Weights, sample, score_requests
from skillserve_client.search import check_models
from skillserve_client.wire import Inference

__all__ = ["Check", "Estimate", "StageCheck", "check_bundle", "check_stage"]

Rows = npt.NDArray[np.int64]

_QUANTILES = (0.025, 0.975)


class Estimate(Record):
    """A measured figure with its 95 % interval.

    Of a plain share of requests it is Wilson's; of anything else the percentile bootstrap over requests (Efron 1979).
    """

    value: float
    low: float
    high: float


class StageCheck(Record):
    """One stage, at the published threshold and the published share of requests that nothing fits."""

    threshold: float
    none_abstained: Estimate
    """Share of the requests that nothing fits which got no answer."""
    answerable_lost: Estimate
    """Share of the answerable requests which got none."""
    left_out_injected: Estimate
    """Share of the answerable requests that get an answer with their own skills left out; others may fit them."""
    ece: Estimate
    """Expected calibration error, 10 bins of equal weight, see `skillserve_client.reliability.ece`."""
    coverage: Estimate
    risk: Estimate
    """Share of the answered requests whose first hit does not fit."""


class Check(Record):
    """A calibration, measured."""

    bundle: Version
    requests_digest: Sha256
    num_answerable: int = Field(ge=1)
    num_none: int = Field(ge=1)
    none_share: float
    stages: dict[StageName, StageCheck]


def check_bundle(
    triton: Inference,
    requests: Path,
    none: Path,
    *,
    qrels: Path | None = None,
    index: IndexSettings | None = None,
    settings: CalibrateSettings | None = None,
) -> Check:
    """Measure the live bundle's calibration, for every stage that it has.

    Raises BundleError for a bundle without one, CatalogueError for the very requests that it was fitted on, and what
    `calibrate_bundle` raises.
    """
    index, settings = index or IndexSettings(), settings or CalibrateSettings()
    bundle = open_bundle(index.bundles, index=index)
    calibration = bundle.calibration
    if calibration is None:
        raise BundleError(
            f"bundle {bundle.version}",
            got="no calibration",
            wanted="one that can be measured",
            fix="Make one: skillserve calibrate --requests FILE --none FILE",
        )
    known = read_known(bundle.corpus, requests, qrels, none, least_answerable=1, least_none=1)
    if known.digest == calibration.requests_digest:
        raise CatalogueError(
            f"`{requests}` and `{none}`",
            got="the requests that the calibration was fitted on",
            wanted="others, since those flatter it",
            fix="Name requests that took no part: --check FILE --check-none FILE",
        )
    check_models(bundle, {role: triton.served(role) for role in bundle.serving})
    rerank = calibration.stages.get("rerank")
    scored = score_requests(bundle, known.asked, triton, rerank.depth if rerank else 0, progress)
    talk(f"measuring on {known.num_answerable} answerable requests and {known.num_none} that nothing fits")
    return Check(
        bundle=bundle.version,
        requests_digest=known.digest,
        num_answerable=known.num_answerable,
        num_none=known.num_none,
        none_share=calibration.none_share,
        stages={
            name: check_stage(stage, sample(scored, name, stage.depth), calibration, settings)
            for name, stage in calibration.stages.items()
        },
    )


def check_stage(
    stage: StageCalibration, samples: Samples, calibration: Calibration, settings: CalibrateSettings
) -> StageCheck:
    """Figures of one stage; resamples draw answerable requests and those that nothing fits each among themselves."""
    features, none_share = samples.features | calibration.leaning(samples.embeddings), calibration.none_share
    z, labels = stage.request.predictors(features), samples.labels
    p, answered = stage.request.at(z), z >= stage.cut
    answerable, none = (np.flatnonzero(samples.where(kind)) for kind in ("answerable", "none"))
    known = np.concatenate([answerable, none])
    # Resamples keep the number of either kind, and so the weights.
    w = Weights(none_share=none_share, left_out_share=0.0).of([samples.outcomes[row] for row in known])

    def figures(rows: Rows) -> tuple[float, float, float]:
        y = labels[rows]
        at = point_at(stage.cut, stage.request, z[rows], y, samples.top_fits[rows], none_share)
        return ece(p[rows], y, w), at.coverage, at.risk

    chance = np.random.default_rng(settings.seed)
    drawn = [
        figures(np.concatenate([chance.choice(rows, len(rows)) for rows in (answerable, none)]))
        for _ in range(settings.num_resamples)
    ]
    intervals = np.quantile(drawn, _QUANTILES, axis=0).T.tolist()
    error, coverage, risk = (
        Estimate(value=value, low=low, high=high) for value, (low, high) in zip(figures(known), intervals, strict=True)
    )
    return StageCheck(
        threshold=stage.threshold,
        none_abstained=_share(~answered[none]),
        answerable_lost=_share(~answered[answerable]),
        left_out_injected=_share(answered[samples.where("left out")]),
        ece=error,
        coverage=coverage,
        risk=risk,
    )


def _share(happened: npt.NDArray[np.bool_]) -> Estimate:
    num, of = int(happened.sum()), len(happened)
    low, high = wilson(num, of)
    return Estimate(value=num / of if of else 0.0, low=low, high=high)
