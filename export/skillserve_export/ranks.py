"""How far the rankings of a candidate are from those of its reference, request by request.

A difference counts only where the reference tells two skills apart: a candidate that puts one of several tied skills
first agrees. NDCG knows no such mercy, since a judgement may tell tied skills apart; there the order is trec_eval's.

Shape legend: Q judged requests, K skills in the pool of one request, P points, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skillserve.bootstrap import Difference, difference, resampled_means
from skillserve.metrics import ndcg_at_k
from skillserve.scoring import Rows
from skillserve_export.gate_requests import GateRequests, Pool
from skillserve_export.parity import TIE_TOLERANCE, TOP_K

__all__ = ["Ndcg", "RankFigures", "RequestRanks", "measure_ranks"]

_RESAMPLES = 10_000
_SEED = 13
_MOST_POINTS = 4_000
"""Score pairs that are kept for a picture."""

Points = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRanks:
    """One request."""

    query: str
    top1: bool
    """The candidate's first skill is the reference's, or tied with it there."""
    overlap: float
    """Share of the candidate's first ten that are, or are tied with, the reference's first ten."""
    ndcg_reference: float | None
    """None without judgements, like the next."""
    ndcg_candidate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ndcg:
    """NDCG@10 over the judged requests, in [0, 1]."""

    reference: float
    candidate: float
    difference: Difference
    """Candidate minus reference, paired by request, with its 95 % bootstrap interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFigures:
    """All requests; shares are in [0, 1]."""

    top1: float
    overlap: float
    ndcg: Ndcg | None
    """None without judgements."""
    drift_max: float
    """Largest absolute difference of a score, over all skills of all pools."""
    drift_mean: float
    requests: Sequence[RequestRanks]
    points: Points
    """`[P, 2]`, scores of the reference and of the candidate, of skills that one of them ranks among the first ten."""


def measure_ranks(requests: GateRequests, candidate: Rows, reference: Rows) -> RankFigures:
    """Compare the rows of all sequences; both are finite."""
    ranks, points, drifts, worst, num_scores = [], [], [], 0.0, 0
    pools = zip(requests.ranked_pools(candidate), requests.ranked_pools(reference), strict=True)
    for query, (found, wanted) in zip(requests.query_ids, pools, strict=True):
        order, ideal = (np.argsort(-pool.final, kind="stable")[:TOP_K] for pool in (found, wanted))
        ranks.append(_compare(query, order, ideal, wanted, requests))
        shown = np.union1d(order, ideal)
        points.append(np.stack([wanted.scores[shown], found.scores[shown]], axis=1))
        drift = np.abs(found.scores.astype(np.float64) - wanted.scores)
        worst, num_scores = max(worst, float(drift.max())), num_scores + len(drift)
        drifts.append(float(drift.sum()))
    points_P2 = np.concatenate(points)
    return RankFigures(
        top1=sum(each.top1 for each in ranks) / len(ranks),
        overlap=math.fsum(each.overlap for each in ranks) / len(ranks),
        ndcg=_ndcg(ranks),
        drift_max=worst,
        drift_mean=math.fsum(drifts) / num_scores,
        requests=ranks,
        points=points_P2[:: -(-len(points_P2) // _MOST_POINTS)],
    )


def _compare(
    query: str, order: npt.NDArray[np.int64], ideal: npt.NDArray[np.int64], wanted: Pool, requests: GateRequests
) -> RequestRanks:
    truth = wanted.final
    margin = TIE_TOLERANCE * max(1.0, float(np.abs(truth).max()))
    relevance = requests.qrels.get(query)
    return RequestRanks(
        query=query,
        top1=bool(truth[order[0]] >= truth[ideal[0]] - margin),
        overlap=float((truth[order] >= truth[ideal[-1]] - margin).mean()),
        ndcg_reference=_ndcg_of(ideal, wanted, requests, relevance),
        ndcg_candidate=_ndcg_of(order, wanted, requests, relevance),
    )


def _ndcg_of(
    order: npt.NDArray[np.int64], pool: Pool, requests: GateRequests, relevance: Mapping[str, int] | None
) -> float | None:
    if relevance is None:
        return None
    return ndcg_at_k([requests.skill_ids[row] for row in pool.skills[order]], relevance, TOP_K)


def _ndcg(ranks: Sequence[RequestRanks]) -> Ndcg | None:
    pairs = [
        (each.ndcg_reference, each.ndcg_candidate)
        for each in ranks
        if each.ndcg_reference is not None and each.ndcg_candidate is not None
    ]
    if not pairs:
        return None
    reference_Q, candidate_Q = np.array(pairs).T
    differences_Q = candidate_Q - reference_Q
    [means_R] = resampled_means(differences_Q[:, None], resamples=_RESAMPLES, seed=_SEED).T
    return Ndcg(
        reference=float(reference_Q.mean()),
        candidate=float(candidate_Q.mean()),
        difference=difference(differences_Q, means_R),
    )
