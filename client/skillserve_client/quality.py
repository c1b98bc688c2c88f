"""Measuring a corpus before it is published: does the order of the first stage hold, and does reranking help?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from skillserve.errors import CatalogueError
from skillserve.metrics import evaluate
from skillserve.records import Qrels, Query
from skillserve.settings import SearchSettings
from skillserve.skillfile import read_qrels, read_queries
from skillserve_client.corpus import Candidates, Corpus
from skillserve_client.embedding import Bars, embed_requests
from skillserve_client.manifest import Quality
from skillserve_client.plan import DEFAULT_DEPTH, order_reranked
from skillserve_client.reranking import rerank_all
from skillserve_client.wire import Inference

__all__ = ["Judged", "measure", "read_judged"]

K = 10
_METRICS = (f"ndcg@{K}", f"recall@{K}", f"completeness@{K}")


class Judged:
    """Requests with their relevance judgements, and the digest of both."""

    def __init__(self, queries: Sequence[Query], qrels: Qrels) -> None:
        self.queries = [query for query in queries if any(rel > 0 for rel in qrels.get(query.id, {}).values())]
        self.qrels = {query.id: dict(qrels[query.id]) for query in self.queries}
        content = [(query.id, query.text, sorted(self.qrels[query.id].items())) for query in self.queries]
        self.digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_judged(queries: Path, qrels: Path | None) -> Judged:
    """Read requests, and judgements from `qrels` or else from the requests' `skill_ids`; raises CatalogueError."""
    requests = read_queries(queries)
    judgements = read_qrels(qrels) if qrels else {q.id: dict.fromkeys(q.skill_ids, 1) for q in requests}
    judged = Judged(requests, judgements)
    if not judged.queries:
        raise CatalogueError(
            f"`{queries}`",
            got=f"{len(requests)} requests, none of them with a fitting skill",
            wanted="`skill_ids` with each request, or judgements in a file of their own",
            fix="Name the judgements: --qrels FILE",
        )
    return judged


def measure(corpus: Corpus, judged: Judged, triton: Inference, settings: SearchSettings, progress: Bars) -> Quality:
    """Both stages through the real server, with the candidates that a search would take.

    A reranker is measured even where settings turn it off, so that the choice rests on figures; depth 0 therefore
    means the default here. Raises CatalogueError if no judged skill is in the catalogue.
    """
    ids = corpus.skills.ids()
    golds = {skill for relevance in judged.qrels.values() for skill, rel in relevance.items() if rel > 0}
    if not golds & set(ids):
        raise CatalogueError(
            "judgements of the measured requests",
            got=f"{len(golds)} skills, none of which is in the catalogue",
            wanted="judgements about this catalogue",
            fix="Name the requests that belong to it: --queries FILE --qrels FILE",
        )
    texts = [query.text for query in judged.queries]
    depth = settings.rerank_depth or DEFAULT_DEPTH
    requests = [corpus.weights.pieces(text) for text in texts]
    vectors = embed_requests(corpus, requests, triton, progress)
    found = corpus.candidates(vectors, requests, max(settings.candidates, depth, K), corpus.weights)
    first = [[ids[row] for row in candidates.rows.tolist()] for candidates in found]
    first_stage = _figures(judged, first)
    two_stage: dict[str, float] | None = None
    if corpus.reranker is not None:
        two_stage = _figures(judged, _reranked(corpus, texts, found, depth, first, triton, progress))
    return Quality(
        requests=len(texts),
        queries_digest=judged.digest,
        k=K,
        candidates=settings.candidates,
        rerank_depth=depth,
        first_stage=first_stage,
        two_stage=two_stage,
        rerank_helps=None if two_stage is None else two_stage[_METRICS[0]] >= first_stage[_METRICS[0]],
    )


def _reranked(
    corpus: Corpus,
    texts: Sequence[str],
    found: Sequence[Candidates],
    depth: int,
    first: Sequence[Sequence[str]],
    triton: Inference,
    progress: Bars,
) -> list[list[str]]:
    reads = [cut.ids for cut in corpus.require_reranker().queries(texts)]
    tops = [candidates.rows[:depth].tolist() for candidates in found]
    rankings: list[list[str]] = []
    for logits, candidates, order in zip(rerank_all(corpus, reads, tops, triton, progress), found, first, strict=True):
        scores = corpus.final_scores(logits, candidates.scores[:depth])
        rankings.append([order[place] for place in order_reranked(scores, len(order)).tolist()])
    return rankings


def _figures(judged: Judged, rankings: Sequence[Sequence[str]]) -> dict[str, float]:
    # Scores are ranks: the two stages have different scales, and metrics would break ties by id.
    run = {
        query.id: {skill: -float(place) for place, skill in enumerate(ranking)}
        for query, ranking in zip(judged.queries, rankings, strict=True)
    }
    figures = evaluate(run, judged.qrels, k=K)
    return {name: figures[name] for name in _METRICS}
