"""What a bundle's calibration says of one search: its probability, and whether to abstain."""

from __future__ import annotations

from dataclasses import dataclass

from skillserve.fusion import FirstStageWeights
from skillserve.settings import SearchSettings
from skillserve_client.bundle import Bundle
from skillserve_client.calibration import EMBED_DEPTH, Curve, StageName, describe
from skillserve_client.corpus import Candidates
from skillserve_client.wire import Floats

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The calibration's word on one search, or that it has none."""

    probability: float | None = None
    abstains: bool = False
    notes: tuple[str, ...] = ()
    hit: Curve | None = None

    def of_hit(self, score: float) -> float | None:
        """Probability that a hit with this score fits."""
        return None if self.hit is None else float(self.hit.probabilities({"score": score}))


def judge(
    bundle: Bundle, scores: Floats, candidates: Candidates, *, weights: FirstStageWeights, settings: SearchSettings
) -> Verdict:
    """Judge a search by the stage that it ended in: reranked if there are `scores`, else embed-only.

    Without a calibration, or at another rerank depth or other first-stage weights than the calibrated ones, or within a
    namespace, there is no probability; whoever wants answers to abstain is told why they do not.
    """
    abstain = settings.abstain
    if bundle.calibration is None:
        return _unsure("this bundle is not calibrated (skillserve calibrate)", abstain=abstain)
    if (calibrated := bundle.calibration.weights) != weights:
        return _unsure(f"calibrated for the weights {calibrated}, not {weights}", abstain=abstain)
    if settings.namespace is not None:
        return _unsure("calibrated for the whole catalogue, not for one namespace", abstain=abstain)
    stage_name: StageName = "rerank" if len(scores) else "embed"
    stage = bundle.calibration.stages[stage_name]
    considered = scores if len(scores) else candidates.scores[:EMBED_DEPTH]
    if len(considered) != min(stage.depth, bundle.manifest.num_skills):
        return _unsure(f"calibrated for {stage.depth} reranked candidates, not {len(considered)}", abstain=abstain)
    features = describe(considered, candidates.nearest) | bundle.calibration.leaning(candidates.request)
    z = float(stage.request.predictors(features))
    probability, fits = float(stage.request.at(z)), z >= stage.cut
    said = f"probability {probability:.3f} that a skill fits, the threshold is {stage.threshold:.3f}"
    return Verdict(
        probability=probability,
        abstains=abstain and not fits,
        notes=(f"abstained: {said}; --no-abstain gives the hits",) if abstain and not fits else (),
        hit=stage.hit,
    )


def _unsure(why: str, *, abstain: bool) -> Verdict:
    return Verdict(notes=(f"cannot abstain: {why}",) if abstain else ())
