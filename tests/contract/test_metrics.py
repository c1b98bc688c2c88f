"""Our metrics against trec_eval's own code, ties included."""

from __future__ import annotations

import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from skillserve.metrics import evaluate, per_query, ranked

TOLERANCE = 1e-9
"""Both compute in double precision; trec_eval sums in another order."""
THEIRS = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut", "precision": "P"}

_docs = st.sampled_from([f"d{i}" for i in range(20)])
# Few distinct scores: ties are the interesting case. 1 + 1e-9 is a tie in float32 only.
_scores = st.sampled_from([0.0, 0.5, 1.0, 1.0 + 1e-9, -3.25, 7.125])
_run = st.dictionaries(_docs, _scores, min_size=1, max_size=20)
# Fewer documents are judged than ranked, and some that are judged are not ranked.
_qrels = st.dictionaries(_docs, st.integers(0, 3), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(_run, _qrels), min_size=1, max_size=4),
    st.lists(st.sampled_from([1, 3, 5, 10, 15, 20]), min_size=1, max_size=3, unique=True),
)
def test_metrics_equal_trec_eval(queries: list[tuple[dict[str, float], dict[str, int]]], cutoffs: list[int]) -> None:
    run = {f"q{i}": scores for i, (scores, _) in enumerate(queries)}
    qrels = {f"q{i}": judged for i, (_, judged) in enumerate(queries)}
    judged = [query for query in qrels if any(qrels[query].values())]
    if not judged:
        with pytest.raises(ValueError, match="no query"):
            per_query(run, qrels, cutoffs=cutoffs)
        return
    names = {f"{theirs}_{k}" for theirs in THEIRS.values() for k in cutoffs}
    reference = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
    ours = per_query(run, qrels, cutoffs=cutoffs)
    for k in cutoffs:
        for name, theirs in THEIRS.items():
            wanted = {query: reference[query][f"{theirs}_{k}"] for query in judged}
            assert ours[f"{name}@{k}"] == pytest.approx(wanted, abs=TOLERANCE)
            assert evaluate(run, qrels, k=k)[f"{name}@{k}"] == pytest.approx(sum(wanted.values()) / len(wanted))
        complete = {query: float(reference[query][f"recall_{k}"] == 1.0) for query in judged}
        assert ours[f"completeness@{k}"] == complete


def test_ties_are_broken_by_id_descending() -> None:
    assert ranked({"a": 1.0, "c": 1.0, "b": 1.0 + 1e-9, "d": 2.0}) == ["d", "c", "b", "a"]


def test_a_judged_query_without_ranking_counts_as_zero() -> None:
    """Dropping it would flatter a system that failed."""
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}}
    assert evaluate({"q1": {"a": 1.0}}, qrels)["ndcg@10"] == pytest.approx(0.5)
