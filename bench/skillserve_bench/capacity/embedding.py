"""How many skills a second one machine embeds: given, or measured as a whole job in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from skillserve.console import progress
from skillserve.errors import ConfigError, RepositoryError
from skillserve.settings import Settings
from skillserve.skillfile import read_skills, split_file
from skillserve_bench.alternation import alternate
from skillserve_bench.capacity.growth import Estimate
from skillserve_bench.figures import Spread
from skillserve_bench.score.jobs import spread
from skillserve_client.batch.crew import Alone
from skillserve_client.batch.files import shard_bytes
from skillserve_client.batch.orders import Order
from skillserve_client.batch.run import Run, Spec
from skillserve_client.batch.watching import Summary
from skillserve_client.wire import Floats

__all__ = ["Rate", "bytes_a_row", "find_rate", "require_rate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Of embedding on one machine."""

    per_s: Estimate
    """Skills a second."""
    tokens_per_s: Spread | None
    """None for a rate that was given."""
    tokens_per_skill: float | None
    told: str
    """Where it comes from."""


def require_rate(repository: Path | None, data: Path | None, per_s: float | None) -> None:
    """Refuse half of what a measurement needs, and two rates; raises ConfigError, RepositoryError."""
    if per_s is not None and repository is not None:
        raise ConfigError(
            "rate of embedding",
            got="--skills-per-s and --repository",
            wanted="one of them",
            fix="Leave out --repository to plan with the rate that you know, or --skills-per-s to measure it.",
        )
    if (repository is None) != (data is None):
        given, missing = ("--data", "--repository") if repository is None else ("--repository", "--data")
        raise ConfigError(
            "rate of embedding",
            got=f"{given} alone",
            wanted=f"{missing}, too: a model and skills that it embeds",
            fix=f"Add {missing} FOLDER, or plan with a rate that you know: --skills-per-s NUMBER",
        )
    if repository is not None and not repository.is_dir():
        raise RepositoryError(
            f"model repository `{repository}`",
            got="no such folder",
            wanted="a folder with an embedder",
            fix=f"Export one: skillserve export WEIGHTS --repository {repository}",
        )


def find_rate(repository: Path | None, data: Path | None, settings: Settings, scratch: Path) -> Rate | None:
    """The rate that was given, or that of embedding some of the data's skills; None without either.

    Raises CatalogueError, RepositoryError, and what a job of `skillserve score embed` does.
    """
    if (given := settings.capacity.skills_per_s) is not None:
        certain = Estimate(value=given, least=given, greatest=given)
        return Rate(
            per_s=certain, tokens_per_s=None, tokens_per_skill=None, told="given by --skills-per-s, not measured"
        )
    if repository is None or data is None:
        return None
    skills = spread(read_skills(split_file(data, "skills", "test")), settings.capacity.num_embedded)
    source = scratch / "skills.jsonl"
    source.write_text("".join(json.dumps(asdict(skill)) + "\n" for skill in skills), encoding="utf-8")
    summaries = _jobs(source, repository, settings, scratch)
    per_s = Spread.of([summary.num_scored / summary.seconds for summary in summaries])
    per_skill = summaries[0].num_tokens / summaries[0].num_scored
    return Rate(
        per_s=Estimate.of(per_s),
        tokens_per_s=Spread.of([summary.tokens_per_s for summary in summaries]),
        tokens_per_skill=per_skill,
        told=f"{len(skills):,} skills of the data's test split, {per_skill:,.0f} tokens each, embedded as a whole job "
        "in this process (`score embed --engine direct`), in as many rounds",
    )


def _jobs(source: Path, repository: Path, settings: Settings, scratch: Path) -> Sequence[Summary]:
    """The job once for each round after a warm-up, each time from its file to its shards; models stay open."""
    order = Order(
        job="embed",
        sources=(source,),
        settings=settings.model_copy(
            update={
                "score": settings.score.model_copy(update={"engine": "direct"}),
                "index": settings.index.model_copy(update={"models": repository}),
            }
        ),
    )
    rounds = settings.capacity.rounds
    with order.opened() as (job, engine), progress("passes over the skills", rounds + 1) as bar:

        def embedded(number: int) -> Summary:
            spec = Spec(out=scratch / f"embedded{number}", engine_name="direct")
            return Run(job, Alone(job, engine), spec).carry_out()

        return alternate({"embed": embedded}, rounds=rounds, advance=bar.advance)["embed"]


def bytes_a_row(vectors: Floats) -> float:
    """Bytes of a row in a shard that `skillserve score embed` writes, of these vectors `[n, D]` as one shard."""
    rows = [{"row": row, "id": f"skill-{row:010d}", "embedding": vector} for row, vector in enumerate(vectors)]
    content = shard_bytes(rows, "parquet", job="embed", dim=vectors.shape[1], metadata={"of": "capacity"})
    return len(content) / len(np.asarray(vectors))
