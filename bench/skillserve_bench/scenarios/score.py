"""What batch scoring keeps of the graph's own throughput, and what kills cost it.

The same skills three ways, in turns: the bare graph on token ids that were made beforehand, and the whole job (files
in, shards out) in this process and through the server. Then the whole job again in a process that is killed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from skillserve.console import progress
from skillserve.settings import BenchSettings
from skillserve.skillfile import read_skills
from skillserve.tensors import Ids, token_budget_batches
from skillserve_bench.alternation import alternate
from skillserve_bench.figures import Spread, paired_ratios, times
from skillserve_bench.inprocess import LocalEmbedder
from skillserve_bench.report import Findings, Table
from skillserve_bench.scenarios.batching import TOLERANCE
from skillserve_bench.score.damage import damage_sentence, damage_tables
from skillserve_bench.score.jobs import Kind, victims
from skillserve_bench.score.killing import Ordeal, kill_all
from skillserve_bench.server import Server
from skillserve_client import Triton
from skillserve_client.batch.crew import Alone
from skillserve_client.batch.direct import DirectInference
from skillserve_client.batch.embed import EmbedJob
from skillserve_client.batch.engine import Engine
from skillserve_client.batch.run import Run, Spec
from skillserve_client.models import read_sources
from skillserve_client.wire import Floats, Inference

__all__ = ["measure_score"]

RAW, DIRECT, SERVED = "the bare graph", "score --engine direct", "score --engine server"
GOALS = {DIRECT: 0.95, SERVED: 0.85}
"""What is to be left of the bare graph's throughput."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """The catalogue once."""

    per_s: float
    vectors: Floats


def measure_score(
    server: Server, *, repository: Path, catalogue: Path, data: Path | None, num_kills: int, settings: BenchSettings
) -> Findings:
    """Measure throughput, then kill; raises ServerError, RepositoryError, CatalogueError, BundleError."""
    client = server.reached()
    raw = LocalEmbedder(repository)
    direct = DirectInference(repository, ("embedder",), max_request_tokens=client.max_request_tokens)
    with Triton(client) as triton, tempfile.TemporaryDirectory(prefix="skillserve-score-") as scratch:
        source = read_sources(repository, triton, roles=("embedder",))["embedder"]
        job = EmbedJob.of([catalogue], source)
        sequences = job.tokens.skills(read_skills(catalogue))

        def through(name: str, inference: Inference, num_workers: int) -> Callable[[int], _Pass]:
            def measured(number: int) -> _Pass:
                spec = Spec(out=Path(scratch) / f"{name}{number}", engine_name=name)
                begin = time.perf_counter()
                with Engine(
                    inference, num_workers=num_workers, max_run_tokens=client.max_request_tokens, patience_s=60.0
                ) as engine:
                    summary = Run(job, Alone(job, engine), spec).carry_out()
                return _Pass(summary.num_scored / (time.perf_counter() - begin), _vectors(spec.out))

            return measured

        contenders: dict[str, Callable[[int], _Pass]] = {
            RAW: lambda _number: _bare(raw, sequences, client.max_request_tokens),
            DIRECT: through("direct", direct, 1),
            SERVED: through("server", triton, client.num_in_flight),
        }
        with progress("passes over the catalogue", 3 * (settings.rounds + 1)) as bar:
            passes = alternate(contenders, rounds=settings.rounds, advance=bar.advance)
        ordeals: list[Ordeal] = []
        absent: dict[Kind, str] = {}
        if num_kills:
            jobs, absent = victims(repository, catalogue, data, triton, Path(scratch))
            ordeals = kill_all(jobs, Path(scratch), num_kills=num_kills, seed=settings.seed)
    return _findings(passes, ordeals, absent, sequences, server, settings)


def _bare(raw: LocalEmbedder, sequences: Sequence[Ids], max_tokens: int) -> _Pass:
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    ordered = [sequences[i] for i in order]
    begin = time.perf_counter()
    parts = [raw.embed(ordered[run]) for run in token_budget_batches(list(map(len, ordered)), max_tokens=max_tokens)]
    wall_s = time.perf_counter() - begin
    vectors = np.empty((len(sequences), parts[0].shape[1]), np.float32)
    vectors[order] = np.concatenate(parts)
    return _Pass(len(sequences) / wall_s, vectors)


def _vectors(out: Path) -> Floats:
    tables = [pq.read_table(file, columns=["embedding"]) for file in sorted((out / "shards").iterdir())]
    return np.array([vector for table in tables for vector in table["embedding"].to_pylist()], np.float32)


def _findings(
    passes: dict[str, list[_Pass]],
    ordeals: Sequence[Ordeal],
    absent: Mapping[Kind, str],
    sequences: Sequence[Ids],
    server: Server,
    settings: BenchSettings,
) -> Findings:
    base = [each.per_s for each in passes[RAW]]
    ratios = {name: Spread.of(paired_ratios([each.per_s for each in passes[name]], base)) for name in GOALS}
    reference = passes[RAW][0].vectors
    difference = max(float(np.abs(each.vectors - reference).max()) for name in GOALS for each in passes[name])
    right = difference <= TOLERANCE and all(ordeal.unharmed for ordeal in ordeals)
    summary = [
        f"`{name}` keeps {ratios[name].median:.0%} of the bare graph's throughput (goal: at least {goal:.0%}): "
        f"{'met' if ratios[name].median >= goal else 'MISSED'}."
        for name, goal in GOALS.items()
    ]
    summary.append(f"Vectors differ from the bare graph's by at most {difference:.1e} (limit {TOLERANCE:.0e}).")
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
                f"{len(sequences):,} skills, {sum(map(len, sequences)):,} tokens; {times(settings.rounds, 'round')} in "
                "turns after one of warm-up, ratios within a round. The bare graph gets token ids made beforehand, "
                "longest first, in runs of the same budget; jobs read the file, tokenise, and write Parquet."
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
            "kills": {ordeal.kind: asdict(ordeal) for ordeal in ordeals},
            "not_killed": dict(absent),
        },
    )


def _speed_table(passes: dict[str, list[_Pass]], ratios: dict[str, Spread]) -> Table:
    return Table(
        title="A catalogue embedded",
        columns=["", "skills/s, median (min to max)", "ratio, median (min to max)"],
        rows=[
            [
                name,
                Spread.of([each.per_s for each in found]).text(1),
                ratios[name].text(2) if name in ratios else "1",
            ]
            for name, found in passes.items()
        ],
    )
