"""From requests whose outcome is known to a calibrated bundle: score, fit, publish.

Everything is scored against the bundle's own whole catalogue, since the highest of many scores is higher: a
threshold found on a tenth of a catalogue lets a third of the requests through that nothing fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from skillserve.console import progress, talk
from skillserve.settings import CalibrateSettings, IndexSettings, SearchSettings
from skillserve_client.asked import read_known
from skillserve_client.bundle import Bundle, open_bundle, read_files
from skillserve_client.calibration import EMBED_DEPTH, Calibration, StageCalibration, StageName
from skillserve_client.leaning import direction_between
from skillserve_client.manifest import CALIBRATION_FILE, Manifest
from skillserve_client.plan import DEFAULT_DEPTH
from skillserve_client.reliability import least_none
from skillserve_client.samples import Samples, sample, score_requests
from skillserve_client.search import check_models
from skillserve_client.shelf import next_version
from skillserve_client.stages import fit_stage, tried
from skillserve_client.versions import publish
from skillserve_client.wire import Inference

__all__ = ["Calibrated", "calibrate_bundle"]

_LEAST_ANSWERABLE = 20
_MUCH_LOST = 0.2
"""Share of the answerable requests whose loss is worth a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What became of a calibration."""

    manifest: Manifest
    calibration: Calibration
    current: bool
    """The live bundle already had this one; nothing was asked or written."""


def calibrate_bundle(
    triton: Inference,
    requests: Path,
    none: Path,
    *,
    qrels: Path | None = None,
    index: IndexSettings | None = None,
    search: SearchSettings | None = None,
    settings: CalibrateSettings | None = None,
    force: bool = False,
) -> Calibrated:
    """Fit curves for every stage that a search of the live bundle may end in, and publish the bundle with them.

    Nothing is done if the live one has them already, from the same requests and settings, unless forced.

    A reranker is calibrated even where settings turn it off, as it is measured; depth 0 therefore means the default
    here. The new version is otherwise the live one. Raises CatalogueError for requests that do not do, BundleError for
    a server with other models or if another bundle became the live one meanwhile, and ServerError; the live bundle is
    untouched by any of them.
    """
    index, search, settings = index or IndexSettings(), search or SearchSettings(), settings or CalibrateSettings()
    live = open_bundle(index.bundles, index=index)
    known = read_known(
        live.corpus,
        requests,
        qrels,
        none,
        least_answerable=max(_LEAST_ANSWERABLE, settings.num_folds),
        least_none=max(least_none(settings.false_injection), settings.num_folds),
    )
    check_models(live, {role: triton.served(role) for role in live.serving})
    depth = (search.rerank_depth or DEFAULT_DEPTH) if live.corpus.reranker is not None else 0
    depths: dict[StageName, int] = {"embed": EMBED_DEPTH, **({"rerank": depth} if depth else {})}
    had = live.calibration
    if not force and had is not None and _is_current(had, known.digest, depths, settings):
        return Calibrated(manifest=live.manifest, calibration=had, current=True)
    scored = score_requests(live, known.asked, triton, depth, progress)
    samples = {stage: sample(scored, stage, considered) for stage, considered in depths.items()}
    with progress("fitting", len(depths)) as bar:
        stages: dict[StageName, StageCalibration] = {}
        for stage, considered in depths.items():
            stages[stage] = fit_stage(samples[stage], stage, considered, settings)
            bar.advance()
    for stage, found in stages.items():
        if found.at_threshold.lost > _MUCH_LOST:
            talk(
                f"Warning: at its threshold the {stage} stage refuses {found.at_threshold.lost:.0%} of the answerable "
                f"requests. Its scores tell little: allow a larger --false-injection, or search with --no-abstain."
            )
    calibration = Calibration(
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        requests_digest=known.digest,
        catalogue_digest=live.manifest.catalogue_digest,
        models=live.digests,
        lexical_weight=live.manifest.lexical_weight,
        part_weight=live.manifest.part_weight,
        none_share=settings.none_share,
        left_out_share=settings.left_out_share,
        false_injection=settings.false_injection,
        num_folds=settings.num_folds,
        seed=settings.seed,
        num_answerable=known.num_answerable,
        num_none=known.num_none,
        direction=_direction(samples["embed"], stages),
        stages=stages,
    )
    return Calibrated(manifest=_publish(live, calibration, index), calibration=calibration, current=False)


def _direction(samples: Samples, stages: Mapping[StageName, StageCalibration]) -> tuple[float, ...]:
    """What the leaning is measured along, if a curve looks at it; the samples of either stage have these requests."""
    if not any("leaning" in stage.request.features for stage in stages.values()):
        return ()
    return tuple(direction_between(samples.embeddings, samples.outcomes).tolist())


def _is_current(had: Calibration, requests: str, depths: dict[StageName, int], settings: CalibrateSettings) -> bool:
    fitted_with = (had.none_share, had.left_out_share, had.false_injection, had.num_folds, had.seed)
    wanted = (settings.none_share, settings.left_out_share, settings.false_injection, settings.num_folds, settings.seed)
    return (
        had.requests_digest == requests
        and {stage: found.depth for stage, found in had.stages.items()} == depths
        and fitted_with == wanted
        # One that an older release fitted knows fewer features.
        and all(found.feature_losses.keys() == tried(stage) for stage, found in had.stages.items())
    )


def _publish(live: Bundle, calibration: Calibration, index: IndexSettings) -> Manifest:
    content = (calibration.model_dump_json(indent=2) + "\n").encode()
    advice = "Run the command again, with the folder that holds CURRENT."
    with next_version(index, over=live.version, advice=advice):
        return publish(
            index.bundles,
            files={**read_files(live), CALIBRATION_FILE: content},
            num_skills=live.manifest.num_skills,
            dim=live.manifest.dim,
            catalogue=live.manifest.catalogue_digest,
            models=live.manifest.models,
            weights=live.manifest.weights,
            late_interaction=live.manifest.late_interaction,
            collection=live.manifest.collection,
        )
