"""Ranking metrics with trec_eval's arithmetic, as pytrec_eval computes them.

Scores are compared as float32 and ties are broken by document id, descending, exactly as trec_eval does;
the mean runs over all queries that have a relevant document, those that the run lacks included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from skillserve.records import Qrels, Run

__all__ = [
    "average_precision_at_k",
    "completeness_at_k",
    "evaluate",
    "ndcg_at_k",
    "per_query",
    "precision_at_k",
    "ranked",
    "recall_at_k",
]

Metric = Callable[[Sequence[str], Mapping[str, int], int], float]


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Document ids, best first: float32 score descending, then id descending (trec_eval's order)."""
    return [doc for _, doc in sorted(((np.float32(score), doc) for doc, score in scores.items()), reverse=True)]


def ndcg_at_k(ranking: Sequence[str], relevance: Mapping[str, int], k: int) -> float:
    """Σ rel / log2(rank + 1) over the first k, divided by that of the ideal order (trec_eval's ndcg_cut)."""
    ideal = _dcg(sorted((rel for rel in relevance.values() if rel > 0), reverse=True)[:k])
    return _dcg([max(relevance.get(doc, 0), 0) for doc in ranking[:k]]) / ideal if ideal else 0.0


def recall_at_k(ranking: Sequence[str], relevance: Mapping[str, int], k: int) -> float:
    """Share of the relevant documents among the first k."""
    golds = {doc for doc, rel in relevance.items() if rel > 0}
    return len(golds.intersection(ranking[:k])) / len(golds) if golds else 0.0


def precision_at_k(ranking: Sequence[str], relevance: Mapping[str, int], k: int) -> float:
    """Share of the first k that is relevant; a shorter ranking still divides by k, as trec_eval does."""
    return sum(relevance.get(doc, 0) > 0 for doc in ranking[:k]) / k


def average_precision_at_k(ranking: Sequence[str], relevance: Mapping[str, int], k: int) -> float:
    """Σ precision at each relevant document of the first k, divided by the number of all (trec_eval's map_cut)."""
    golds = {doc for doc, rel in relevance.items() if rel > 0}
    ranks = [rank for rank, doc in enumerate(ranking[:k], 1) if doc in golds]
    return math.fsum(found / rank for found, rank in enumerate(ranks, 1)) / len(golds) if golds else 0.0


def completeness_at_k(ranking: Sequence[str], relevance: Mapping[str, int], k: int) -> float:
    """1 if every relevant document is among the first k, else 0 (SkillRet's Completeness)."""
    return float(recall_at_k(ranking, relevance, k) == 1.0)


_METRICS: dict[str, Metric] = {
    "ndcg": ndcg_at_k,
    "recall": recall_at_k,
    "map": average_precision_at_k,
    "precision": precision_at_k,
    "completeness": completeness_at_k,
}


def per_query(run: Run, qrels: Qrels, *, cutoffs: Sequence[int]) -> dict[str, dict[str, float]]:
    """Metric (`ndcg@10` and so on) → query → value, over the queries with a relevant document, in their order.

    A query without a ranking counts as 0. Raises ValueError if no query has a relevant document.
    """
    judged = [query for query in qrels if any(rel > 0 for rel in qrels[query].values())]
    if not judged:
        raise ValueError("no query of these qrels has a relevant document")
    rankings = {query: ranked(run.get(query, {})) for query in judged}
    return {
        f"{name}@{k}": {query: metric(rankings[query], qrels[query], k) for query in judged}
        for name, metric in _METRICS.items()
        for k in cutoffs
    }


def evaluate(run: Run, qrels: Qrels, *, k: int = 10) -> dict[str, float]:
    """Means of `per_query` at one cutoff."""
    return {
        name: math.fsum(values.values()) / len(values) for name, values in per_query(run, qrels, cutoffs=[k]).items()
    }


def _dcg(gains: Sequence[int]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
