"""The commands `skillserve score embed`, `rank`, `pairs` and `audit`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from skillserve.console import out, print_json, talk
from skillserve.flags import Json, with_settings
from skillserve.settings import Settings
from skillserve.tensors import Role
from skillserve_client.batch.audit.audit import Audit
from skillserve_client.batch.audit.categories import embed_taxonomy
from skillserve_client.batch.audit.show import show
from skillserve_client.batch.audit.taxonomy import Taxonomy, read_taxonomy
from skillserve_client.batch.direct import DirectInference
from skillserve_client.batch.embed import EmbedJob
from skillserve_client.batch.engine import Engine
from skillserve_client.batch.finished import Finished
from skillserve_client.batch.jobs import Job
from skillserve_client.batch.pairs import PairsJob
from skillserve_client.batch.rank import RankJob
from skillserve_client.batch.receipts import REJECTS_FILE
from skillserve_client.batch.run import Run, Spec
from skillserve_client.batch.watching import Summary
from skillserve_client.bundle import Bundle, open_bundle
from skillserve_client.models import read_sources
from skillserve_client.search import check_models
from skillserve_client.triton import Triton
from skillserve_client.wire import Floats, Inference

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
    roles: tuple[Role, ...] = ("embedder",)
    with _inference(settings, roles) as inference:
        (source,) = read_sources(settings.index.models, inference, roles=roles).values()
        return _carry_out(EmbedJob.of(catalogue, source), inference, settings, out, fresh=fresh, as_json=as_json)


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
    bundle = open_bundle(settings.index.bundles, index=settings.index)
    job = RankJob.of(requests, bundle, settings.search)
    return _carry_out_with(bundle, job, settings, out, fresh=fresh, as_json=as_json)


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
    bundle = open_bundle(settings.index.bundles, index=settings.index)
    job = PairsJob.of(pairs, bundle, settings.search)
    return _carry_out_with(bundle, job, settings, out, fresh=fresh, as_json=as_json)


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
        with _inference(settings, ("embedder",)) as inference:
            (source,) = read_sources(settings.index.models, inference, roles=("embedder",)).values()
            return embed_taxonomy(taxonomy, source, inference, model=job.model)

    summary, current = job.carry_out(embed_categories)
    if as_json:
        print_json({"status": "current" if current else "published", "out": str(out), **summary})
    else:
        show(summary, str(out))


def _carry_out_with(
    bundle: Bundle, job: RankJob | PairsJob, settings: Settings, out: Path, *, fresh: bool, as_json: bool
) -> int:
    """A job over a bundle, with the very models that the bundle was built with."""
    with _inference(settings, tuple(job.digests)) as inference:
        check_models(bundle, {role: inference.served(role) for role in job.digests})
        return _carry_out(job, inference, settings, out, fresh=fresh, as_json=as_json)


@contextmanager
def _inference(settings: Settings, roles: Sequence[Role]) -> Iterator[Inference]:
    """The engine's models: a connection, or graphs in this process."""
    if settings.score.engine == "direct":
        yield DirectInference(settings.index.models, roles, max_request_tokens=settings.client.max_request_tokens)
        return
    with Triton(settings.client) as triton:
        yield triton


def _carry_out(
    job: Job[Any, Any], inference: Inference, settings: Settings, out: Path, *, fresh: bool, as_json: bool
) -> int:
    chosen, client = settings.score, settings.client
    direct = chosen.engine == "direct"
    spec = Spec(
        out=out,
        file_format=chosen.format,
        shard_rows=chosen.shard_rows,
        engine_name=chosen.engine,
        fresh=fresh,
        as_json=as_json,
    )
    with Engine(
        inference,
        num_workers=1 if direct else client.num_in_flight,
        max_run_tokens=client.max_request_tokens,
        patience_s=chosen.patience_s,
        timeout_s=None if direct else client.timeout_s,
    ) as engine:
        summary = Run(job, engine, spec).carry_out()
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
