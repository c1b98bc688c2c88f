"""The commands `skillserve index` and `skillserve search`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from skillserve.console import out, print_json, progress, talk
from skillserve.errors import QueryError, UsageError
from skillserve.flags import Json, with_settings
from skillserve.records import Answer, Query
from skillserve.runs import by_rank, require_writable, write_run
from skillserve.settings import Settings
from skillserve.skillfile import read_queries
from skillserve_client.build import Built, build_bundle
from skillserve_client.search import Searcher
from skillserve_client.triton import Triton

__all__ = ["index", "search"]


@with_settings("index", "client", "search.candidates", "search.rerank_depth")
def index(
    catalogue: Annotated[Path, typer.Argument(help="JSONL(.gz) or Parquet file, or a folder with SKILL.md files")],
    queries: Annotated[Path | None, typer.Option(help="measure with these requests before publishing")] = None,
    qrels: Annotated[Path | None, typer.Option(help="their judgements; without it, their own `skill_ids`")] = None,
    force: Annotated[bool, typer.Option("--force", help="build even if the live bundle is the same")] = False,  # noqa: FBT002
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Build a bundle from a catalogue through a running server."""
    if qrels and not queries:
        raise UsageError(
            "option --qrels", got="judgements without requests", wanted="--queries as well", fix="Add --queries FILE."
        )
    with Triton(settings.client) as triton:
        built = build_bundle(
            catalogue,
            triton,
            index=settings.index,
            search=settings.search,
            queries=queries,
            qrels=qrels,
            force=force,
        )
    _show_built(built, settings.index.bundles, as_json=as_json)


@with_settings("index.bundles", "index.uri", "index.milvus_timeout_s", "search", "client")
def search(
    query: Annotated[
        str | None, typer.Argument(help="the request; without it, --file or one per line on stdin")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="JSONL(.gz) or Parquet file of requests")] = None,
    run_out: Annotated[Path | None, typer.Option(help="with --file: write the rankings as a TREC run")] = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Find skills for a request."""
    if query is not None and file is not None:
        raise UsageError(
            "command `skillserve search`", got="a request and --file", wanted="one of them", fix="Leave one out."
        )
    if run_out and not file:
        raise UsageError(
            "option --run-out", got="requests without ids", wanted="--file as well", fix="Add --file FILE.jsonl."
        )
    requests = _requests(query, file)
    if run_out:
        require_writable(run_out)
        # A ranking is evaluated as a ranking: an abstained answer would have none.
        settings = settings.model_copy(update={"search": settings.search.model_copy(update={"abstain": False})})
    run: dict[str, dict[str, float]] = {}
    for request, answer in _answers(requests, settings):
        if run_out:
            # By rank: the two stages score on different scales.
            run[request.id] = by_rank([hit.skill_id for hit in answer.hits])
        if as_json:
            print_json({"id": request.id, "query": request.text, **answer.to_dict()})
        elif not run_out:
            _show_answer(request, answer, titled=len(requests) > 1)
    if run_out:
        write_run(run_out, run)
        talk(f"{len(requests)} rankings written to {run_out}")


def _requests(query: str | None, file: Path | None) -> list[Query]:
    if file is not None:
        requests = read_queries(file)
    elif query is not None:
        return [Query(id="1", text=query)]
    else:
        lines = sys.stdin.read().splitlines() if not sys.stdin.isatty() else []
        requests = [Query(id=str(n), text=line) for n, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise QueryError(
            f"`{file}`" if file else "standard input",
            got="no request",
            wanted="at least one",
            fix="Say what the skill should do: skillserve search 'resize images in a folder'",
        )
    return requests


def _answers(requests: Sequence[Query], settings: Settings) -> Iterator[tuple[Query, Answer]]:
    with Searcher.connect(
        settings.index.bundles, client=settings.client, settings=settings.search, index=settings.index
    ) as searcher:
        if len(requests) == 1:
            yield requests[0], searcher.search(requests[0].text)
            return
        with progress("searching", len(requests)) as bar:
            for request in requests:
                yield request, searcher.search(request.text)
                bar.advance()


def _show_built(built: Built, root: Path, *, as_json: bool) -> None:
    manifest = built.manifest
    if as_json:
        result: dict[str, Any] = {
            "status": "current" if built.current else "published",
            "bundle": str(root / manifest.version),
            "version": manifest.version,
            "parent": manifest.parent,
            "num_skills": manifest.num_skills,
            "dim": manifest.dim,
            "index_kind": manifest.index_kind,
            "collection": manifest.collection.model_dump() if manifest.collection else None,
            "lexical_weight": manifest.lexical_weight,
            "part_weight": manifest.part_weight,
            "token_embeddings": manifest.token_embeddings,
            "digests": {role: entry.digest for role, entry in manifest.models.items()},
            "quality": built.quality.model_dump() if built.quality else None,
            "calibrated": built.calibrated,
        }
        print_json(result)
        return
    digests = ", ".join(f"{role} {entry.digest[:12]}" for role, entry in manifest.models.items())
    verb = "current, nothing to do" if built.current else "published"
    out.print(
        f"{verb}: {root / manifest.version} · {manifest.num_skills} skills · {digests}", markup=False, soft_wrap=True
    )
    if built.quality is None:
        return
    quality = built.quality
    stages = [("first stage", quality.first_stage), *([("reranked", quality.two_stage)] if quality.two_stage else [])]
    table = Table("", *quality.first_stage, box=None, title_justify="left")
    for title, figures in stages:
        table.add_row(title, *(f"{figure:.4f}" for figure in figures.values()))
    out.print(table)
    if quality.rerank_helps is False:
        talk("Reranking lowered NDCG@10 on these requests: searches leave it out unless --rerank-depth is given.")


def _show_answer(request: Query, answer: Answer, *, titled: bool) -> None:
    if titled:
        out.print(f"\n{request.id}: {request.text[:100]}", markup=False)
    if answer.status == "abstained":
        out.print("no skill fits; nearest misses:")
    table = Table("rank", "name", "score", "similarity", "probability", "id", box=None)
    for hit in answer.hits or answer.near_misses:
        probability = "" if hit.probability is None else f"{hit.probability:.3f}"
        cells = (str(hit.rank), hit.name, f"{hit.score:.3f}", f"{hit.similarity:.3f}", probability, hit.skill_id)
        table.add_row(*(Text(cell) for cell in cells))
    out.print(table)
    timings = " · ".join(f"{stage} {value:.1f}" for stage, value in answer.timings_ms.items())
    digests = " · ".join(f"{role} {digest[:12]}" for role, digest in answer.digests.items())
    out.print(f"{answer.status} · ms: {timings} · bundle {answer.bundle} · {digests}", markup=False, soft_wrap=True)
    for note in answer.notes:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
