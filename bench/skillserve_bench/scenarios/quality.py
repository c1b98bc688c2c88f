"""Does the served line find what the same weights find in sentence-transformers?

The served side is the whole of it: the client's tokens, the packed graph, Triton, the bundle and its index. The
other side shares the texts and the weights, and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skillserve.card import read_card
from skillserve.console import progress, talk
from skillserve.errors import CardError
from skillserve.metrics import evaluate
from skillserve.records import Qrels, Query
from skillserve.settings import ClientSettings, IndexSettings, SearchSettings
from skillserve.skillfile import read_skills, split_file
from skillserve.tensors import MODEL_NAMES
from skillserve_bench.peers.sentence_transformers import SentenceTransformersPeer
from skillserve_bench.report import Findings, Table
from skillserve_bench.server import Server
from skillserve_client import Searcher, Triton, build_bundle, open_bundle
from skillserve_client.quality import read_judged

__all__ = ["Catalogue", "compare", "find_catalogue", "measure_quality"]

K = 10
METRICS = {f"ndcg@{K}": f"NDCG@{K}", f"recall@{K}": f"Recall@{K}", f"completeness@{K}": f"Completeness@{K}"}
MOST_POINTS = 0.2
"""Goal: how far apart the two may be, in hundredths of any of the metrics."""

Rankings = Mapping[str, Sequence[str]]
"""Query id → skill ids, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The test split of a folder in SkillRet's layout."""

    skills: Path
    queries: Path
    qrels: Path


def find_catalogue(data: Path) -> Catalogue:
    """The three files of the test split; raises CatalogueError if one is missing."""
    return Catalogue(
        skills=split_file(data, "skills", "test"),
        queries=split_file(data, "queries", "test"),
        qrels=split_file(data, "qrels", "test"),
    )


def measure_quality(
    server: Server, catalogue: Catalogue, *, weights: Path, repository: Path, client: ClientSettings
) -> Findings:
    """Rank every judged request on both sides. Raises CardError if weights and repository are different models."""
    card = read_card(weights)
    exported = read_card(repository / MODEL_NAMES["embedder"])
    if card.digest != exported.digest:
        raise CardError(
            f"weights folder `{weights}`",
            got=f"digest {card.short_digest}",
            wanted=f"{exported.short_digest}, which `{repository}` was exported from",
            fix="Export these weights: skillserve export WEIGHTS, or name those of the repository with --weights.",
        )
    peer = SentenceTransformersPeer(weights)
    judged = read_judged(catalogue.queries, catalogue.qrels)
    served = _served(server, catalogue, judged.queries, repository, client)
    talk("Ranking with sentence-transformers, in process.")
    baseline = _in_process(peer, catalogue.skills, judged.queries)
    return compare(served, baseline, judged.qrels, server=server.version, catalogue=catalogue)


def _served(
    server: Server, catalogue: Catalogue, queries: Sequence[Query], repository: Path, client: ClientSettings
) -> dict[str, list[str]]:
    """The embedder's order, through the whole served line."""
    settings = SearchSettings(candidates=K, rerank_depth=0, top_k=K)
    with tempfile.TemporaryDirectory() as folder, Triton(server.reached(client)) as triton:
        bundles = Path(folder)
        build_bundle(catalogue.skills, triton, index=IndexSettings(models=repository, bundles=bundles), search=settings)
        searcher = Searcher(open_bundle(bundles), triton, settings)
        rankings: dict[str, list[str]] = {}
        with progress("searching", len(queries)) as bar:
            for query in queries:
                rankings[query.id] = [hit.skill_id for hit in searcher.search(query.text).hits]
                bar.advance()
    return rankings


def _in_process(peer: SentenceTransformersPeer, source: Path, queries: Sequence[Query]) -> dict[str, list[str]]:
    """The peer's order by exact inner product."""
    skills = read_skills(source)
    skills_ND = peer.embed_skills(skills).astype(np.float64)
    queries_QD = peer.embed_queries([query.text for query in queries]).astype(np.float64)
    order_QK = np.argsort(-(queries_QD @ skills_ND.T), axis=1, kind="stable")[:, :K]
    return {query.id: [skills[row].id for row in rows] for query, rows in zip(queries, order_QK.tolist(), strict=True)}


def compare(served: Rankings, baseline: Rankings, qrels: Qrels, *, server: str, catalogue: Catalogue) -> Findings:
    """Figures of both sides, their differences in points, and how many of the first ten they share."""
    here, there = _figures(served, qrels), _figures(baseline, qrels)
    points = {name: (here[name] - there[name]) * 100 for name in METRICS}
    shared = [len(set(served[query]) & set(baseline[query])) / len(baseline[query]) for query in served]
    same_order = sum(list(served[query]) == list(baseline[query]) for query in served)
    furthest = max(abs(difference) for difference in points.values())
    within = furthest <= MOST_POINTS
    num_skills = len(read_skills(catalogue.skills))
    return Findings(
        name="quality",
        title="Ranking quality as served, beside sentence-transformers",
        passed=within,
        summary=[
            (
                f"Served, the embedder reaches NDCG@{K} {here[f'ndcg@{K}'] * 100:.2f}; the same weights in "
                f"sentence-transformers {there[f'ndcg@{K}'] * 100:.2f}. The largest difference of the three metrics is "
                f"{furthest:.2f} points: {'within' if within else 'NOT within'} {MOST_POINTS:g} points."
            ),
            (
                f"The first {K} share {np.mean(shared):.2%} of their skills; "
                f"they are the same in the same order for {same_order} of {len(served)} requests."
            ),
        ],
        tables=[
            Table(
                title="Metrics",
                columns=["", *METRICS.values()],
                rows=[
                    ["served by skillserve", *(f"{here[name] * 100:.2f}" for name in METRICS)],
                    ["sentence-transformers", *(f"{there[name] * 100:.2f}" for name in METRICS)],
                    ["difference, points", *(f"{points[name]:+.2f}" for name in METRICS)],
                ],
            )
        ],
        method=[
            f"{num_skills:,} skills and {len(served)} judged requests of the test split; embedder only, no reranking.",
            (
                "Served: the client's tokeniser, the packed graph on Triton, a bundle with its exact index, one search "
                "a request."
            ),
            (
                "sentence-transformers: its Transformer and Pooling modules on the same weights folder, normalised as "
                "the card says, the same token limits and texts, exact inner product in float64."
            ),
            "Metrics with trec_eval's arithmetic, means over the judged requests.",
        ],
        server=server,
        figures={
            "served": here,
            "sentence_transformers": there,
            "difference_points": points,
            f"top_{K}_overlap": float(np.mean(shared)),
            "same_order": same_order,
            "num_skills": num_skills,
            "num_requests": len(served),
        },
    )


def _figures(rankings: Rankings, qrels: Qrels) -> dict[str, float]:
    # Scores are places: the metrics would break ties of scores by id.
    run = {query: {skill: -float(place) for place, skill in enumerate(found)} for query, found in rankings.items()}
    figures = evaluate(run, {query: qrels[query] for query in rankings}, k=K)
    return {name: figures[name] for name in METRICS}
