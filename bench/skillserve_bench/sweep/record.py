"""What a report of a sweep records for whoever doubts or repeats it: how it was measured, and all figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from skillserve.bootstrap import Estimate as Mean
from skillserve.bootstrap import estimate, resampled_means
from skillserve.recommendation import Recommendation
from skillserve.settings import BenchSettings, SweepSettings
from skillserve_bench.figures import times
from skillserve_bench.sweep.choice import LATENCY_SHARE, Choice, Front
from skillserve_bench.sweep.trials import Trial

__all__ = ["Swept", "figures_of", "mean_ndcg", "method_of"]

_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """All that a report of a sweep is made of."""

    trials: Sequence[Trial]
    recommendation: Recommendation | None
    sweep: SweepSettings
    bench: BenchSettings
    data: str
    """What was searched, in a sentence."""
    token_embeddings: int = 0
    """Of each skill bundles kept so many."""
    interrupted: bool = False

    @property
    def problems(self) -> list[str]:
        """Points without figures, or whose figures are not what they are called."""
        return [f"point {trial.point.title}: {text}" for trial in self.trials for text in trial.objections]


def mean_ndcg(trial: Trial, base: Trial | None = None) -> Mean | None:
    """NDCG@10 in points with its interval, or its paired difference to another point's."""
    if trial.ranking is None or (base is not None and base.ranking is None):
        return None
    values = 100 * np.array(trial.ranking.values, np.float64)
    if base is not None and base.ranking is not None:
        values -= 100 * np.array(base.ranking.values, np.float64)
    means = resampled_means(values[:, None], resamples=_RESAMPLES, seed=0)[:, 0]
    return estimate(values, means)


def method_of(swept: Swept) -> list[str]:
    """How it was measured, one fact a line."""
    sweep, bench = swept.sweep, swept.bench
    subjects = {trial.point.host.subject.repository: trial.point.host.subject for trial in swept.trials}
    grid = {
        "instances": sweep.instances,
        "threads": sweep.threads,
        "most requests of a batch": sweep.max_batch_sizes,
        "queue delay, µs": sweep.max_queue_delay_us,
        "tokens a request": sweep.token_budgets,
        "candidates": sweep.candidates,
        "rerank depth": sweep.rerank_depths,
    }
    return [
        "Grid: "
        + "; ".join(f"{name} {', '.join(map(str, values)) or 'as exported'}" for name, values in grid.items())
        + ". A depth beyond the candidates is left out.",
        *(f"{subject.name}: {subject.about}." for subject in subjects.values()),
        swept.data,
        *([f"Bundles keep up to {swept.token_embeddings} token embeddings a skill."] if swept.token_embeddings else []),
        (
            f"{times(sweep.rounds, 'round')}: each starts every server anew, alone, and measures all points on it; "
            "every other round goes backwards."
        ),
        (
            f"A lone search: one client, {sweep.seconds:g} s (MLPerf's SingleStream). Many: a closed loop of "
            f"{times(bench.num_clients, 'client')}, {sweep.seconds:g} s. Whole searches, text in and ids out, through "
            "the client; warm-up is left out. No load sends a request twice; all points of a round get the same."
        ),
        (
            "Intervals of latencies and rates are over the windows of all rounds, from three on between them, too; "
            "those of NDCG@10 are of a bootstrap "
            "over requests, differences paired by request. Quality is measured once for each repository, candidates "
            "and depth, since other settings change no answer."
        ),
        (
            "A point is on a front if no other has at least its NDCG@10 and at least its speed, and more of one. "
            "`by 2`: point 2 beats it; `by 2?`: perhaps by chance, since intervals meet."
        ),
        f"Recommended is the fastest whose NDCG@10 is at most {sweep.quality_loss:g} below the best.",
        f"Seed {bench.seed}, one more each round.",
    ]


def figures_of(swept: Swept, fronts: Sequence[Front], choices: Sequence[Choice]) -> dict[str, Any]:
    """Everything as numbers."""
    return {
        "interrupted": swept.interrupted,
        "problems": swept.problems,
        "grid": swept.sweep.model_dump(mode="json"),
        "num_clients": swept.bench.num_clients,
        "seed": swept.bench.seed,
        "points": [_point_figures(trial, fronts) for trial in swept.trials],
        "chosen": {choice.profile: choice.trial.point.number for choice in choices},
        "recommendation": None if swept.recommendation is None else swept.recommendation.model_dump(mode="json"),
    }


def _point_figures(trial: Trial, fronts: Sequence[Front]) -> dict[str, Any]:
    point, mean = trial.point, mean_ndcg(trial)
    return {
        "number": point.number,
        "name": point.name,
        "repository": point.host.subject.name,
        "models": {name: each.model_dump() for name, each in point.host.subject.models.items()},
        "serve": point.host.tuning.changes,
        "search": point.asking.model_dump(),
        "objections": trial.objections,
        "latency_ms": {name: asdict(trial.latency_ms(share)) for name, share in (("p50", 0.5), ("p90", LATENCY_SHARE))}
        if any(each.num_answered for each in trial.lone)
        else {},
        "searches_per_s": asdict(trial.per_s) if any(each.rates for each in trial.many) else None,
        "ndcg@10": None if mean is None else {name: value / 100 for name, value in asdict(mean).items()},
        "fronts": {front.profile: front.remark(trial) for front in fronts},
    }
