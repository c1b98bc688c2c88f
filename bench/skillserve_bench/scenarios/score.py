"""What batch scoring keeps of the graph's own throughput, how it stands beside other ways, and what kills cost it.

The same skills in every way, in turns; then jobs of each kind in processes that are killed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np

from skillserve.console import progress
from skillserve.settings import Settings
from skillserve.skillfile import read_skills
from skillserve.tensors import Ids
from skillserve_bench.alternation import alternate
from skillserve_bench.figures import Spread, paired_ratios, times
from skillserve_bench.report import Findings, Table
from skillserve_bench.scenarios.batching import TOLERANCE
from skillserve_bench.score.damage import damage_sentence, damage_tables
from skillserve_bench.score.jobs import Kind, victims
from skillserve_bench.score.killing import Ordeal, kill_all
from skillserve_bench.score.ways import DIRECT, ONE_BY_ONE, RAW, RAY, SERVED, TRANSFORMERS, Pass, ways
from skillserve_bench.server import Server
from skillserve_client import Triton
from skillserve_client.batch.embed import EmbedJob
from skillserve_client.models import read_sources
from skillserve_client.wire import Floats

__all__ = ["measure_score"]

GOALS = {DIRECT: 0.95, SERVED: 0.85}
"""What is to be left of the bare graph's throughput."""

_LEAST_COSINE = 0.9
"""Of another implementation's vectors in fp32 with those of any precision; below it they are another model's."""


def measure_score(
    server: Server,
    *,
    repository: Path,
    catalogue: Path,
    data: Path | None,
    weights: Path | None,
    num_kills: int,
    settings: Settings,
) -> Findings:
    """Measure throughput, then kill; raises ServerError, RepositoryError, CatalogueError, BundleError, CardError."""
    settings = settings.model_copy(
        update={
            "client": server.reached(),
            "index": settings.index.model_copy(update={"models": repository}),
        }
    )
    with (
        Triton(settings.client) as triton,
        tempfile.TemporaryDirectory(prefix="skillserve-score-") as name,
        ExitStack() as held,
    ):
        scratch = Path(name)
        source = read_sources(repository, triton, roles=("embedder",))["embedder"]
        skills = read_skills(catalogue)
        sequences = EmbedJob.of([catalogue], source).tokens.skills(skills)
        contenders, missing = ways(
            held,
            triton,
            catalogue=catalogue,
            skills=skills,
            sequences=sequences,
            settings=settings,
            weights=weights,
            scratch=scratch,
        )
        rounds = settings.bench.rounds
        with progress("passes over the catalogue", len(contenders) * (rounds + 1)) as bar:
            passes = alternate(contenders, rounds=rounds, advance=bar.advance)
        ordeals: list[Ordeal] = []
        absent: dict[Kind, str] = {}
        if num_kills:
            jobs, absent = victims(repository, catalogue, skills, data, triton, scratch)
            absent |= {job.kind: "fewer kills were asked for than there are kinds" for job in jobs[num_kills:]}
            ordeals = kill_all(jobs, scratch, num_kills=num_kills, seed=settings.bench.seed)
    return _findings(passes, missing, ordeals, absent, sequences, server, rounds)


def _findings(
    passes: Mapping[str, Sequence[Pass]],
    missing: Mapping[str, str],
    ordeals: Sequence[Ordeal],
    absent: Mapping[Kind, str],
    sequences: Sequence[Ids],
    server: Server,
    rounds: int,
) -> Findings:
    ratios = {name: _ratio(passes, name, RAW) for name in passes if name != RAW}
    reference = passes[RAW][0].vectors
    ours = [each for name, found in passes.items() if name not in (RAW, TRANSFORMERS) for each in found]
    difference = max(float(np.abs(each.vectors - reference).max()) for each in ours)
    cosine = _cosine(passes[TRANSFORMERS][0], reference) if TRANSFORMERS in passes else None
    right = (
        difference <= TOLERANCE
        and (cosine is None or cosine >= _LEAST_COSINE)
        and all(ordeal.unharmed for ordeal in ordeals)
    )
    summary = [
        f"`{name}` keeps {ratios[name].median:.0%} of the bare graph's throughput (goal: at least {goal:.0%}): "
        f"{'met' if ratios[name].median >= goal else 'MISSED'}."
        for name, goal in GOALS.items()
    ]
    summary += [
        f"It embeds {_ratio(passes, DIRECT, name).text(2)} times the skills of {name}."
        for name in (TRANSFORMERS, ONE_BY_ONE)
        if name in passes
    ]
    if RAY in passes:
        summary.append(
            f"`{RAY}`, its start and its workers' models included, keeps {_ratio(passes, RAY, DIRECT).text(2)} of "
            f"`{DIRECT}` on the same cores."
        )
    summary += [f"{name} was NOT measured: {why}." for name, why in missing.items()]
    summary.append(f"Vectors differ from the bare graph's by at most {difference:.1e} (limit {TOLERANCE:.0e}).")
    if cosine is not None:
        summary.append(f"The least cosine of {TRANSFORMERS} with them is {cosine:.4f} (limit {_LEAST_COSINE}).")
    summary += map(damage_sentence, ordeals)
    summary += [f"No `{kind}` was killed: {why}." for kind, why in absent.items()]
    return Findings(
        name="score",
        title="What batch scoring keeps of the graph that it runs, and what kills cost",
        passed=right,
        summary=summary,
        tables=[_speed_table(passes, ratios), *(damage_tables(ordeals) if ordeals else [])],
        method=[
            (
                f"{len(sequences):,} skills, {sum(map(len, sequences)):,} tokens; {times(rounds, 'round')} in "
                "turns after one of warm-up, ratios within a round. The bare graph gets token ids made beforehand, "
                "longest first, in runs of the same budget; jobs read the file, tokenise, and write Parquet. "
                f"{ONE_BY_ONE.capitalize()}: one skill a request, the next one when it is answered, made beforehand, "
                f"too. {TRANSFORMERS.capitalize()}: texts in, PyTorch, fp32, its own batches of 32."
            ),
            (
                "Kills are SIGKILLs of a process of its own, one in five before it computes; moments are drawn by "
                "seed. `rank` and `pairs` search a bundle of some of the skills, evenly spread."
            ),
        ],
        server=server.version,
        figures={
            "skills_per_s": {name: asdict(Spread.of([each.per_s for each in found])) for name, found in passes.items()},
            "ratio": {name: asdict(ratio) for name, ratio in ratios.items()},
            "largest_difference": difference,
            "least_cosine": cosine,
            "not_measured": dict(missing),
            "kills": {ordeal.kind: asdict(ordeal) for ordeal in ordeals},
            "not_killed": dict(absent),
        },
    )


def _ratio(passes: Mapping[str, Sequence[Pass]], name: str, base: str) -> Spread:
    """Throughput relative to another's, round by round."""
    one, other = ([each.per_s for each in passes[each_name]] for each_name in (name, base))
    return Spread.of(paired_ratios(one, other))


def _cosine(found: Pass, reference: Floats) -> float:
    """The least of all rows' cosines with the reference."""
    dots = (found.vectors * reference).sum(axis=1)
    norms = np.linalg.norm(found.vectors, axis=1) * np.linalg.norm(reference, axis=1)
    return float((dots / norms).min())


def _speed_table(passes: Mapping[str, Sequence[Pass]], ratios: Mapping[str, Spread]) -> Table:
    return Table(
        title="A catalogue embedded",
        columns=["", "skills/s, median (min to max)", "of the bare graph, median (min to max)"],
        rows=[
            [
                name,
                Spread.of([each.per_s for each in found]).text(1),
                ratios[name].text(2) if name in ratios else "1",
            ]
            for name, found in passes.items()
        ],
    )
