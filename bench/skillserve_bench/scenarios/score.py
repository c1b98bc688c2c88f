"""What batch scoring keeps of the graph's own throughput, and what kills cost it.

The same skills three ways, in turns: the bare graph on token ids that were made beforehand, and the whole job (files
in, shards out) in this process and through the server. Then the whole job again in a process that is killed.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from skillserve.console import progress
from skillserve.publish import sha256_of
from skillserve.settings import BenchSettings
from skillserve.skillfile import read_skills
from skillserve.tensors import Ids, token_budget_batches
from skillserve_bench.alternation import alternate
from skillserve_bench.figures import Spread, paired_ratios, times
from skillserve_bench.inprocess import LocalEmbedder
from skillserve_bench.kills import Kill, finish, kill_once
from skillserve_bench.report import Findings, Table
from skillserve_bench.scenarios.batching import TOLERANCE
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
    server: Server, *, repository: Path, catalogue: Path, num_kills: int, settings: BenchSettings
) -> Findings:
    """Measure throughput, then kill; raises ServerError, RepositoryError, CatalogueError."""
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
        kills, whole = _kills(repository, catalogue, Path(scratch), num_kills, settings.seed)
    return _findings(passes, kills, sequences, server, settings, whole=whole)


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


def _kills(
    repository: Path, catalogue: Path, scratch: Path, num_kills: int, seed: int
) -> tuple[list[Kill], bool | None]:
    """Kills until there are so many, and whether what they left in the end is what an undisturbed run leaves."""
    if not num_kills:
        return [], None
    num_rows = len(read_skills(catalogue))
    # Four shards for each kill, more than it lets pass, so that the work does not end before the kills.
    shard_rows = max(1, num_rows // (4 * num_kills))

    def command(out: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "skillserve", "score", "embed", str(catalogue), "--out", str(out), "--json"),
            *("--engine", "direct", "--models", str(repository), "--shard-rows", str(shard_rows)),
        ]

    quiet, killed = scratch / "quiet", scratch / "killed"
    undisturbed = finish(command(quiet))
    pause_s = undisturbed["seconds"] / max(1, undisturbed["num_shards"])
    rng = random.Random(seed)  # noqa: S311 - moments, not cryptography
    kills: list[Kill] = []
    with progress("kills", num_kills) as bar:
        while len(kills) < num_kills:
            kill = kill_once(command(killed), killed, pause_s=pause_s, rng=rng)
            if kill.ended:  # the table then says how many there were
                break
            kills.append(kill)
            bar.advance()
    finish(command(killed))
    return kills, _files(quiet) == _files(killed)


def _files(out: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in (out / "shards").iterdir()}


def _findings(
    passes: dict[str, list[_Pass]],
    kills: Sequence[Kill],
    sequences: Sequence[Ids],
    server: Server,
    settings: BenchSettings,
    *,
    whole: bool | None,
) -> Findings:
    base = [each.per_s for each in passes[RAW]]
    ratios = {name: Spread.of(paired_ratios([each.per_s for each in passes[name]], base)) for name in GOALS}
    reference = passes[RAW][0].vectors
    difference = max(float(np.abs(each.vectors - reference).max()) for name in GOALS for each in passes[name])
    repeated = sum(kill.repeated for kill in kills)
    missing = sum(kill.missing for kill in kills)
    right = difference <= TOLERANCE and whole is not False and not repeated and not missing
    summary = [
        f"`{name}` keeps {ratios[name].median:.0%} of the bare graph's throughput (goal: at least {goal:.0%}): "
        f"{'met' if ratios[name].median >= goal else 'MISSED'}."
        for name, goal in GOALS.items()
    ]
    summary.append(f"Vectors differ from the bare graph's by at most {difference:.1e} (limit {TOLERANCE:.0e}).")
    if kills:
        summary.append(
            f"{times(len(kills), 'kill')}: {missing} finished shards lost, {repeated} computed again; the result "
            f"{'is that of an undisturbed run, byte for byte' if whole else 'DIFFERS from an undisturbed run'}."
        )
    return Findings(
        name="score",
        title="What batch scoring keeps of the graph that it runs, and what kills cost",
        passed=right,
        summary=summary,
        tables=[_speed_table(passes, ratios), *([_kill_table(kills)] if kills else [])],
        method=[
            (
                f"{len(sequences):,} skills, {sum(map(len, sequences)):,} tokens; {times(settings.rounds, 'round')} in "
                "turns after one of warm-up, ratios within a round. The bare graph gets token ids made beforehand, "
                "longest first, in runs of the same budget; jobs read the file, tokenise, and write Parquet."
            ),
            "Kills are SIGKILLs of a process of its own, one in five before it computes; moments are drawn by seed.",
        ],
        server=server.version,
        figures={
            "skills_per_s": {name: asdict(Spread.of([each.per_s for each in found])) for name, found in passes.items()},
            "ratio": {name: asdict(ratio) for name, ratio in ratios.items()},
            "largest_difference": difference,
            "kills": [asdict(kill) for kill in kills],
            "whole_after_kills": whole,
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


def _kill_table(kills: Sequence[Kill]) -> Table:
    return Table(
        title="Kills",
        columns=[
            "kill",
            "finished before",
            "gone on from",
            "told of as new",
            "computed again",
            "lost",
            "finished after",
        ],
        rows=[
            list(map(str, (i, kill.before, kill.resumed, kill.computed, kill.repeated, kill.missing, kill.after)))
            for i, kill in enumerate(kills, 1)
        ],
    )
