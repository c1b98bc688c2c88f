"""The commands `skillserve score embed`, `rank`, `pairs` and `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skillserve.console import out, print_json, talk
from skillserve.flags import Json, with_settings
from skillserve.settings import Settings
from skillserve_client.batch.audit.audit import Audit
from skillserve_client.batch.audit.categories import embed_taxonomy
from skillserve_client.batch.audit.show import show
from skillserve_client.batch.audit.taxonomy import Taxonomy, read_taxonomy
from skillserve_client.batch.crew import Alone
from skillserve_client.batch.finished import Finished
from skillserve_client.batch.orders import Order, opened_inference
from skillserve_client.batch.receipts import REJECTS_FILE
from skillserve_client.batch.run import Run, Spec
from skillserve_client.batch.watching import Summary
from skillserve_client.batch.workers import Workers
from skillserve_client.models import read_sources
from skillserve_client.wire import Floats

__all__ = ["WITH_REJECTS", "score"]

WITH_REJECTS = 6
"""Exit code of a run that finished, with rows that have no result."""

score = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Embed or audit a catalogue, rank a file of requests, or score pairs, in bulk; a stopped run goes on.",
)

_OF_A_SEARCH = [
    f"search.{name}"
    for name in ("candidates", "rerank_depth", "lexical_weight", "part_weight", "namespace", "top_k", "abstain")
]

_Out = Annotated[Path, typer.Option("--out", help="folder of the results; an interrupted run in it goes on")]
_Fresh = Annotated[bool, typer.Option("--fresh", help="remove what an earlier job left in --out")]


@score.command()
@with_settings("score", "index.models", "client")
def embed(
    catalogue: Annotated[list[Path], typer.Argument(help="JSONL(.gz) or Parquet files, or folders of SKILL.md")],
    out: _Out,
    fresh: _Fresh = False,  # noqa: FBT002
    *,
    settings: Settings,
    as_json: Json = False,
) -> int:
    """Embed the skills of a catalogue."""
    order = Order(job="embed", sources=tuple(catalogue), settings=settings)
    return _carry_out(order, out, fresh=fresh, as_json=as_json)


@score.command()
@with_settings("score", "index.bundles", "index.models", "index.uri", "index.milvus_timeout_s", *_OF_A_SEARCH, "client")
def rank(
    requests: Annotated[list[Path], typer.Argument(help="JSONL(.gz) or Parquet files of `id` and `query`")],
    out: _Out,
    fresh: _Fresh = False,  # noqa: FBT002
    *,
    settings: Settings,
    as_json: Json = False,
) -> int:
    """Find skills for every request of a file: two stages, with probabilities where the bundle is calibrated."""
    order = Order(job="rank", sources=tuple(requests), settings=settings)
    return _carry_out(order, out, fresh=fresh, as_json=as_json)


@score.command()
@with_settings(
    "score",
    "index.bundles",
    "index.models",
    "index.uri",
    "index.milvus_timeout_s",
    "search.lexical_weight",
    "search.part_weight",
    "client",
)
def pairs(
    pairs: Annotated[list[Path], typer.Argument(help="JSONL(.gz) or Parquet files of `query` and `skill_id`")],
    out: _Out,
    fresh: _Fresh = False,  # noqa: FBT002
    *,
    settings: Settings,
    as_json: Json = False,
) -> int:
    """Score given requests with given skills of the bundle, as a search would."""
    order = Order(job="pairs", sources=tuple(pairs), settings=settings)
    return _carry_out(order, out, fresh=fresh, as_json=as_json)


@score.command()
@with_settings("audit", "score.engine", "score.format", "index.models", "client")
def audit(
    catalogue: Annotated[list[Path], typer.Argument(help="the files and folders that were embedded")],
    vectors: Annotated[Path, typer.Option("--vectors", help="finished output of `skillserve score embed`")],
    out: Annotated[Path, typer.Option("--out", help="folder of the results; it is replaced as a whole")],
    rankings: Annotated[
        Path | None, typer.Option("--rankings", help="finished output of `skillserve score rank`, to count hits in")
    ] = None,
    fresh: _Fresh = False,  # noqa: FBT002
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Find near duplicates, neighbours, hubs and categories of a catalogue that was embedded."""
    job = Audit(
        catalogue=catalogue,
        vectors=Finished.opened(vectors, "embed"),
        rankings=Finished.opened(rankings, "rank") if rankings else None,
        taxonomy=read_taxonomy(settings.audit.taxonomy) if settings.audit.categories else None,
        settings=settings.audit,
        file_format=settings.score.format,
        out=out,
        fresh=fresh,
    )

    def embed_categories(taxonomy: Taxonomy) -> Floats:
        direct = settings.score.engine != "server"
        with opened_inference(settings, "direct" if direct else "server", ("embedder",)) as inference:
            (source,) = read_sources(settings.index.models, inference, roles=("embedder",)).values()
            return embed_taxonomy(taxonomy, source, inference, model=job.model)

    summary, current = job.carry_out(embed_categories)
    if as_json:
        print_json({"status": "current" if current else "published", "out": str(out), **summary})
    else:
        show(summary, str(out))


def _carry_out(order: Order, out: Path, *, fresh: bool, as_json: bool) -> int:
    score = order.settings.score
    spec = Spec(
        out=out,
        file_format=score.format,
        shard_rows=score.shard_rows,
        engine_name=order.computes_with,
        fresh=fresh,
        as_json=as_json,
    )
    if score.engine == "ray":
        for_workers, job, models = order.described()
        summary = Run(job, Workers(for_workers, models), spec).carry_out()
    else:
        with order.opened() as (job, engine):
            summary = Run(job, Alone(job, engine), spec).carry_out()
    if not as_json:
        _show(summary, spec.out)
    return WITH_REJECTS if summary.num_rejects else 0


def _show(summary: Summary, folder: Path) -> None:
    out.print(
        f"{summary.num_scored} of {summary.num_rows} rows scored into {folder} · {summary.num_shards} shards, "
        f"{summary.num_resumed} of them before · {summary.num_tokens:,} tokens, {summary.tokens_per_s:,.0f}/s",
        markup=False,
        soft_wrap=True,
    )
    if summary.num_rejects:
        talk(f"{summary.num_rejects} rows have no result; why, line by line: {folder / REJECTS_FILE}")
    if summary.num_repeats:
        talk(f"{summary.num_repeats} times the server shed what it was sent, or was away.")
