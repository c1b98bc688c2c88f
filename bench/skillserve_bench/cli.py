"""The commands `skillserve bench …`, without those that have files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skillserve.console import out as results
from skillserve.console import print_json, talk
from skillserve.flags import Json, with_settings
from skillserve.settings import Settings
from skillserve_bench import cli_batch, cli_capacity, cli_crosscheck, cli_peers, cli_sweep
from skillserve_bench.cli_peers import PeerEmbedder, PeerNames, PeerPadded, PeerReranker
from skillserve_bench.cli_reports import SERVER, Note, Out, Repository, conclude, report_files, served_or_given
from skillserve_bench.compare import compare_reports, comparison_table, read_report
from skillserve_bench.environment import observe
from skillserve_bench.figures import times
from skillserve_bench.latency import measure_latency
from skillserve_bench.peers.sentence_transformers import PACKAGES
from skillserve_bench.report import terminal_table
from skillserve_bench.scenarios.batching import measure_batching
from skillserve_bench.scenarios.overhead import measure_overhead
from skillserve_bench.scenarios.quality import find_catalogue, measure_quality
from skillserve_bench.scenarios.ranking import measure_ranking
from skillserve_bench.scenarios.speed import Subject, measure_speed
from skillserve_bench.server import started_server
from skillserve_bench.speed.workload import read_corpus

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cli_peers.app, name="peers")
app.command()(cli_sweep.sweep)
app.command()(cli_batch.score)
app.command()(cli_batch.memory)
app.command()(cli_capacity.capacity)
app.command()(cli_crosscheck.crosscheck)

Data = Annotated[
    Path | None,
    typer.Option(
        help="folder in SkillRet's layout; the requests of its test split are sent. Without it: random token ids"
    ),
]


@app.callback()
def _bench() -> None:
    """Measure quality and speed against independent baselines."""


@app.command()
@with_settings(*SERVER)
def quality(
    data: Annotated[Path, typer.Option(help="folder in SkillRet's layout; its test split is indexed and searched")],
    weights: Annotated[Path, typer.Option(help="weights folder that the repository was exported from")],
    repository: Repository,
    out: Out = None,
    note: Note = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Compare the rankings of the served embedder with sentence-transformers'."""
    files = report_files(out)
    environment = observe(PACKAGES)
    catalogue = find_catalogue(data)
    with served_or_given(repository, settings) as server:
        findings = measure_quality(server, catalogue, weights=weights, repository=repository, client=settings.client)
    conclude(findings, environment, files, note, as_json=as_json)


@app.command()
@with_settings(
    *(f"evaluate.{name}" for name in ("rerank_depth", "lexical_weight", "part_weight", "resamples", "seed")), "client"
)
def ranking(
    systems: Annotated[
        list[str],
        typer.Argument(
            metavar="SYSTEM...", help="as in `skillserve evaluate`; the last one is compared with all others"
        ),
    ],
    data: Annotated[Path, typer.Option(help="folder in SkillRet's layout; the requests of its test split are asked")],
    union: Annotated[  # noqa: FBT002
        bool, typer.Option("--union", help="measure a second time among the skills of all splits")
    ] = False,
    out: Out = None,
    note: Note = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Compare how well systems find the right skills: what tuning, words, parts and reranking gain."""
    files = report_files(out)
    environment = observe((*PACKAGES, "bm25s"))
    findings = measure_ranking(systems, data, pools=["split", "union"] if union else ["split"], settings=settings)
    conclude(findings, environment, files, note, as_json=as_json)


@app.command()
@with_settings("bench.rounds", "bench.num_clients", "bench.num_requests", "bench.seed")
def batching(
    packed: Annotated[Path, typer.Option(help="model repository with the embedder in the packed layout")],
    padded: Annotated[Path, typer.Option(help="model repository with the same weights in the padded layout")],
    data: Data = None,
    out: Out = None,
    note: Note = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Compare throughput without padding and with it, for requests of mixed lengths."""
    files = report_files(out)
    environment = observe()
    with started_server(packed) as packed_server, started_server(padded) as padded_server:
        findings = measure_batching(packed_server, padded_server, repository=packed, data=data, settings=settings.bench)
    conclude(findings, environment, files, note, as_json=as_json)


@app.command()
@with_settings(*(f"bench.{name}" for name in ("rounds", "num_clients", "num_requests", "num_pairs", "seed")), *SERVER)
def overhead(
    repository: Repository,
    data: Data = None,
    out: Out = None,
    note: Note = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Compare the server with the same graph in process: latency of lone requests, throughput under load."""
    files = report_files(out)
    environment = observe()
    with served_or_given(repository, settings) as server:
        findings = measure_overhead(server, repository=repository, data=data, settings=settings.bench)
    conclude(findings, environment, files, note, as_json=as_json)


@app.command()
@with_settings(
    *(
        f"bench.{name}"
        for name in (
            "length",
            "levels",
            "scenarios",
            "bound_ms",
            "bound_factor",
            "arrivals",
            "num_clients",
            "num_workers",
        )
    ),
    "bench.seed",
    "bench.peers_folder",
    *(f"index.{name}" for name in ("kind", "uri", "milvus_timeout_s", "lexical_weight", "part_weight")),
    "index.token_embeddings",
    "client",
)
def latency(
    repository: Repository,
    data: Annotated[Path, typer.Option(help="folder in SkillRet's layout; the requests of its test split are sent")],
    peer: PeerNames = None,
    peer_embedder: PeerEmbedder = None,
    peer_reranker: PeerReranker = None,
    peer_padded: PeerPadded = None,
    out: Out = None,
    note: Note = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Measure latency and throughput of embedder, reranker and the whole search under load, beside peers if invited."""
    files = report_files(out)
    peers = cli_peers.invited(
        peer,
        settings.bench,
        embedder=peer_embedder,
        reranker=peer_reranker,
        padded=peer_padded,
    )
    environment = observe(("hdrhistogram", "grpcio"))
    with served_or_given(repository, settings) as server:
        findings = measure_latency(
            server,
            repository=repository,
            data=data,
            settings=settings.bench,
            client=settings.client,
            index=settings.index,
            invited=peers,
        )
    conclude(findings, environment, files, note, as_json=as_json)


@app.command()
@with_settings("bench.regression_share", "bench.seed")
def compare(
    old: Annotated[Path, typer.Argument(help="JSON report of `latency`, the one to be compared with")],
    new: Annotated[Path, typer.Argument(help="another one")],
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Compare two reports of latencies: ratios with intervals, exit 1 on a regression."""
    share = settings.bench.regression_share
    found = compare_reports(read_report(new), read_report(old), share=share, seed=settings.bench.seed)
    if as_json:
        print_json(found.to_dict())
    else:
        results.print(terminal_table(comparison_table(found)))
        for remark in found.remarks:
            talk(remark)
        talk(f"{times(len(found.regressions), 'regression')} beyond {share:.0%}.")
    if found.regressions:
        raise typer.Exit(1)


@app.command()
@with_settings("bench.rounds", "bench.num_clients", "bench.seed", "client.max_request_tokens")
def speed(
    data: Annotated[Path, typer.Option(help="folder in SkillRet's layout; its test split is computed")],
    weights: Annotated[Path, typer.Option(help="weights folder of the embedder, for its shapes and the baselines")],
    repository: Annotated[
        list[Path], typer.Option(help="packed model repository; once for each precision, fp32 among them")
    ],
    padded: Annotated[
        list[Path] | None, typer.Option(help="padded model repository of the same weights; once for each precision")
    ] = None,
    reranker_weights: Annotated[
        Path | None, typer.Option(help="weights folder of the repositories' reranker; without it none is measured")
    ] = None,
    num_skills: Annotated[
        int | None, typer.Option(min=1, help="take so many skills only, those that fit among them, for a trial")
    ] = None,
    num_requests: Annotated[int | None, typer.Option(min=1, help="take so many requests only, for a trial")] = None,
    out: Out = None,
    note: Note = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Compare the graph's speed with the machine's, with other implementations, and with a server's."""
    files = report_files(out)
    environment = observe((*PACKAGES, "optimum-onnx", "openvino"))
    corpus = read_corpus(data, num_skills=num_skills, num_requests=num_requests, seed=settings.bench.seed)
    subject = Subject(weights=weights, reranker_weights=reranker_weights, packed=repository, padded=tuple(padded or ()))
    max_tokens = settings.client.max_request_tokens
    findings = measure_speed(subject, corpus, settings=settings.bench, max_tokens=max_tokens)
    conclude(findings, environment, files, note, as_json=as_json)
