"""Which settings give the best searches for their time? A small grid of servers and ways to ask, and its fronts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from skillserve.recommendation import Recommendation
from skillserve.settings import IndexSettings, Settings
from skillserve.skillfile import read_skills, split_file
from skillserve_bench.environment import Environment
from skillserve_bench.report import Findings
from skillserve_bench.supply import read_texts
from skillserve_bench.sweep.choice import recommendation_of
from skillserve_bench.sweep.grid import make_grid, read_subjects
from skillserve_bench.sweep.record import Swept
from skillserve_bench.sweep.trials import Course
from skillserve_bench.sweep.words import findings_of
from skillserve_client.quality import read_judged

__all__ = ["Sweep", "measure_sweep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a sweep found out, for people and for `serve`."""

    findings: Findings
    recommendation: Recommendation | None
    """None if no point could be measured whole, or the sweep was interrupted."""


def measure_sweep(repositories: Sequence[Path], data: Path, *, settings: Settings, environment: Environment) -> Sweep:
    """Measure every point of the settings' grid on the test split of `data`.

    Raises what keeps it from beginning: UsageError for an empty grid, CatalogueError, RepositoryError, CardError. What
    fails later, such as a server that does not start, is told in the report, and the other points are measured.
    """
    sweep, bench = settings.sweep, settings.bench
    points = make_grid(read_subjects(repositories), sweep)
    judged = read_judged(split_file(data, "queries", "test"), split_file(data, "qrels", "test"))
    num_skills = len(read_skills(split_file(data, "skills", "test")))
    read_texts(data, seed=bench.seed)  # refused now, not after a server was started
    interrupted = False
    with TemporaryDirectory() as folder:
        course = Course(
            points,
            data=data,
            judged=judged,
            bundles=Path(folder),
            sweep=sweep,
            bench=bench,
            client=settings.client,
            # Where vectors are, and weights of the first stage, are no part of its grid, and it says nothing of them.
            index=IndexSettings(token_embeddings=settings.index.token_embeddings),
        )
        try:
            course.run()
        except KeyboardInterrupt:
            if not any(trial.lone for trial in course.trials):
                raise
            interrupted = True
    recommendation = None
    if not interrupted:  # points of fewer rounds than others are no base to serve by
        recommendation = recommendation_of(
            course.trials, environment, num_clients=bench.num_clients, quality_loss=sweep.quality_loss
        )
    num_judged = min(len(judged.queries), sweep.num_judged)
    swept = Swept(
        trials=course.trials,
        recommendation=recommendation,
        sweep=sweep,
        bench=bench,
        token_embeddings=settings.index.token_embeddings,
        data=f"{num_skills:,} skills of the test split; NDCG@10 over {num_judged:,} of its "
        f"{len(judged.queries):,} judged requests.",
        interrupted=interrupted,
    )
    return Sweep(findings=findings_of(swept), recommendation=recommendation)
