"""What do tuning, shared words, parts and reranking gain? Systems side by side on the same requests, with intervals.

Systems are those of `skillserve evaluate`, and so are the figures. Where weights take part both in process and through
a server, the two have to agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from skillserve.bootstrap import Difference
from skillserve.collection import Collection, Pool, read_split
from skillserve.console import talk
from skillserve.evaluation import check_systems, rank
from skillserve.figures import HEADLINE, Figures, measure_runs
from skillserve.figures_view import metric_title, paired_with_interval, with_interval
from skillserve.fusion import FirstStageWeights
from skillserve.settings import EvaluateSettings, Settings
from skillserve.systems import System, open_system
from skillserve_bench.figures import times
from skillserve_bench.report import Findings, Table

__all__ = ["measure_ranking"]

MOST_POINTS = 0.1
"""How far the same weights may be apart in process and through a server, in hundredths of NDCG."""
_LEADING = HEADLINE[0]


@dataclass(frozen=True, slots=True)
class _Measured:
    """All systems on one pool of skills."""

    pool: Pool
    collection: Collection
    figures: Mapping[str, Figures]
    gains: Mapping[str, Mapping[str, Difference]]
    """The last system minus each of the others, by metric."""

    @property
    def last(self) -> str:
        """The system in question."""
        return list(self.figures)[-1]

    @property
    def where(self) -> str:
        """What was ranked, for a title."""
        return f"{len(self.collection.skills):,} skills, {len(self.collection.queries):,} requests"


def measure_ranking(specs: Sequence[str], data: Path, *, pools: Sequence[Pool], settings: Settings) -> Findings:
    """Rank the test split's requests with every system over every pool; the last system is the one in question.

    Fails where a server and the weights that it serves differ by more than 0.1 points, as they also do if the bundle
    was built with other weights of words and parts than the settings name.
    """
    chosen = settings.evaluate
    check_systems(specs, chosen)
    systems = [open_system(spec, settings) for spec in specs]
    measured = [_measure(systems, data, pool, chosen) for pool in pools]
    twins = _same_weights(systems)
    apart = [line for each in measured for line in _disagreements(twins, each)]
    summary = [_outcome(each) for each in measured]
    if twins:
        told = f"NOT within {MOST_POINTS:g} points, with {FirstStageWeights.of(chosen)} here: {'; '.join(apart)}"
        within = told if apart else f"within {MOST_POINTS:g} points"
        summary.append(f"In process and through a server the same weights are {within}.")
    return Findings(
        name="ranking",
        title="How well the right skills are found",
        passed=not apart,
        summary=summary,
        tables=[table for each in measured for table in _tables(each)],
        method=[
            (
                "Means over all requests, with 95 % intervals of a bootstrap over requests "
                f"({chosen.resamples:,} resamples, seed {chosen.seed}); differences are paired by request."
            ),
            (
                "Systems are those of `skillserve evaluate`: `bm25`; a weights folder, searched exactly in float32; "
                f"two of them, the second one reranks the first {chosen.rerank_depth}; `server:`, the live bundle."
            ),
            (
                f"First stages of weights folders add {chosen.lexical_weight:g} · shared words and "
                f"{chosen.part_weight:g} · the best part of a request; a bundle has its own weights."
            ),
            *(f"{system.name}: {_digests(system)}" for system in systems if system.digests),
            *(f"Judgements of `{each.pool}`: sha256 {each.collection.digest()}." for each in measured),
        ],
        server="no server of its own",
        figures={
            each.pool: {
                "digest": each.collection.digest(),
                "systems": {name: found.to_dict() for name, found in each.figures.items()},
                "gains": {
                    name: {metric: asdict(found) for metric, found in differences.items()}
                    for name, differences in each.gains.items()
                },
            }
            for each in measured
        },
    )


def _measure(systems: Sequence[System], data: Path, pool: Pool, settings: EvaluateSettings) -> _Measured:
    collection = read_split(data, "test", pool=pool)
    runs = []
    for system in systems:
        talk(f"{system.name} ranks {len(collection.skills):,} skills for {times(len(collection.queries), 'request')}.")
        runs.append(rank(system, collection, settings))
    names = [system.name for system in systems]
    figures = dict(zip(names, measure_runs(runs, collection, settings), strict=True))
    gains = {}
    for name, run in zip(names[:-1], runs[:-1], strict=True):
        _, last = measure_runs([run, runs[-1]], collection, settings)
        gains[name] = last.differences or {}
    return _Measured(pool, collection, figures, gains)


def _same_weights(systems: Sequence[System]) -> list[tuple[System, System]]:
    """A weights folder, and a server with the same models."""
    return [
        (one, other)
        for one in systems
        for other in systems
        if _served(other) and not _served(one) and one.digests and dict(one.digests) == dict(other.digests)
    ]


def _served(system: System) -> bool:
    return system.name.startswith("server:")


def _disagreements(twins: Sequence[tuple[System, System]], measured: _Measured) -> list[str]:
    found = []
    for one, other in twins:
        here, there = (100 * measured.figures[each.name].metrics[_LEADING].mean for each in (one, other))
        if abs(here - there) > MOST_POINTS:
            found.append(f"{one.name} {here:.2f}, {other.name} {there:.2f} over the pool `{measured.pool}`")
    return found


def _outcome(measured: _Measured) -> str:
    reached = with_interval(measured.figures[measured.last].metrics[_LEADING])
    gains = [f"{paired_with_interval(found[_LEADING])} over {name}" for name, found in measured.gains.items()]
    among = f"Among {len(measured.collection.skills):,} skills"
    return f"{among}, {measured.last} has {metric_title(_LEADING)} {reached}{': ' if gains else ''}{', '.join(gains)}."


def _tables(measured: _Measured) -> list[Table]:
    metrics = list(map(metric_title, HEADLINE))
    groups = measured.figures[measured.last].by_num_golds
    tables = [
        Table(
            title=f"Figures ({measured.where})",
            columns=["system", *metrics],
            rows=[
                [name, *(with_interval(found.metrics[metric]) for metric in HEADLINE)]
                for name, found in measured.figures.items()
            ],
        ),
        Table(
            title=f"What {measured.last} gains ({measured.where})",
            columns=["over", *metrics],
            rows=[
                [name, *(paired_with_interval(found[metric]) for metric in HEADLINE)]
                for name, found in measured.gains.items()
            ],
        ),
        Table(
            title=f"{metric_title(_LEADING)} by the number of skills that fit ({measured.where})",
            columns=["system", *(f"{name} ({group.num_queries})" for name, group in groups.items())],
            rows=[
                [name, *(with_interval(found.by_num_golds[group].metrics[_LEADING]) for group in groups)]
                for name, found in measured.figures.items()
            ],
        ),
    ]
    return [table for table in tables if table.rows]


def _digests(system: System) -> str:
    return ", ".join(f"{role} {digest[:12]}" for role, digest in system.digests.items())
