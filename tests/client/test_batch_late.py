"""Jobs over a bundle with token embeddings: rows of tokens come home, and a refused request is refused alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from skillserve.errors import ServerError
from skillserve.records import Pair, Query
from skillserve.settings import SearchSettings
from skillserve_client import Bundle, Searcher
from skillserve_client.batch import pairs
from skillserve_client.batch.engine import Engine
from skillserve_client.batch.jobs import Refused
from skillserve_client.batch.pairs import PairsJob
from skillserve_client.batch.rank import RankJob

QUERIES = ["resize photo", "merge pdf table", "git commit tests", "send email", "chart", "deploy cloud rust sheet"]
DEEP = SearchSettings(rerank_depth=5, top_k=5)


class _Poisoned:
    """A server whose token embedder fails on texts with one token."""

    def __init__(self, fake: Any, poison: int) -> None:
        self._fake, self._poison = fake, poison

    def served(self, role: Any) -> Any:
        return self._fake.served(role)

    def infer(self, role: Any, sequences: Any, **how: Any) -> Any:
        if role == "token_embedder" and any(self._poison in sequence for sequence in sequences):
            raise ServerError("fake", got="NaN", wanted="numbers", fix="None.")
        return self._fake.infer(role, sequences, **how)


def engine_of(inference: Any, **changes: Any) -> Engine:
    return Engine(inference, **{"num_workers": 2, "max_run_tokens": 12, "patience_s": 0.0} | changes)


def test_rankings_are_those_of_the_searcher_and_a_refused_request_is_refused_alone(
    late_bundle: Bundle, late_fake: Any
) -> None:
    poison = late_bundle.corpus.require_reranker().query("chart").ids[0]
    job = RankJob.of([], late_bundle, DEEP)
    records = [Query(id=str(i), text=text) for i, text in enumerate([*QUERIES, "  "])]
    with engine_of(_Poisoned(late_fake, int(poison))) as engine:
        found = job.score(job.prepare(records), engine, lambda _: None)
    searcher = Searcher(late_bundle, late_fake, DEEP)
    assert dict(job.digests) == late_bundle.serving
    for record, outcome in zip(records, found, strict=True):
        if record.text in {"chart", "  "}:
            assert isinstance(outcome, Refused)
            continue
        answer = searcher.search(record.text).to_dict()
        assert outcome == {"id": record.id} | {
            name: answer[name] for name in ("status", "probability", "reranked", "hits", "near_misses", "notes")
        }
    assert "token_embedder: the model refused it" in str(found[4])
    assert "reranker" not in {role for role, _, _ in late_fake.calls}


def test_pairs_have_the_scores_of_searches_and_those_of_a_refused_request_are_refused(
    late_bundle: Bundle, late_fake: Any
) -> None:
    poison = int(late_bundle.corpus.require_reranker().query("chart").ids[0])
    skills = late_bundle.corpus.skills.ids()
    # Skill by skill, so that the pairs of one request stand apart.
    records = [Pair(id=None, text=query, skill_id=skill) for skill in skills for query in QUERIES]
    records.insert(7, Pair(id="lost", text="git", skill_id="nobody"))
    job = PairsJob.of([], late_bundle, SearchSettings())
    with engine_of(_Poisoned(late_fake, poison)) as engine:
        found = job.score(job.prepare(records), engine, lambda _: None)
    asked = [ids.tolist() for role, sequences, _ in late_fake.calls for ids in sequences if role == "token_embedder"]
    assert len({tuple(ids) for ids in asked} - {(0,)}) == len(QUERIES) - 1
    searcher = Searcher(late_bundle, late_fake, DEEP)
    hits = {(query, hit.skill_id): hit for query in QUERIES for hit in searcher.search(query).hits}
    for place, (pair, outcome) in enumerate(zip(records, found, strict=True)):
        if pair.text == "chart" or place == 7:
            assert isinstance(outcome, Refused)
            assert ("nobody" if place == 7 else "the model refused it") in outcome.reason
            continue
        assert isinstance(outcome, dict)
        hit = hits[pair.text, pair.skill_id]
        assert np.float32(outcome["score"]) == np.float32(hit.score)
        assert np.float32(outcome["similarity"]) == np.float32(hit.similarity)
        alone = job.score(job.prepare([pair]), engine := engine_of(late_fake), lambda _: None)
        engine.close()
        assert alone == [outcome]


def test_pairs_of_few_requests_at_once_are_scored_alike(
    late_bundle: Bundle, late_fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of tokens are compared before more are asked for, so that memory does not grow with a shard."""
    records = [Pair(id=None, text=text, skill_id=skill) for text in QUERIES for skill in ("pdf", "git")]
    job = PairsJob.of([], late_bundle, SearchSettings())
    with engine_of(late_fake) as engine:
        wanted = job.score(job.prepare(records), engine, lambda _: None)
        monkeypatch.setattr(pairs, "_REQUESTS_AT_ONCE", 2)
        assert job.score(job.prepare(records), engine, lambda _: None) == wanted


@pytest.mark.parametrize("bad", [[], [0], [3, 4], [8], list(range(9))])
@pytest.mark.parametrize("max_run_tokens", [12, 1000])
def test_rows_of_tokens_come_home_to_their_sequences(
    bad: list[int], max_run_tokens: int, late_fake: Any, computed: Any
) -> None:
    lens = [9, 4, 4, 6, 2, 8, 3, 3, 1]
    sequences = [np.random.default_rng(n).integers(5, 60, length).astype(np.int32) for n, length in enumerate(lens)]
    for i in bad:
        sequences[i][0] = 61
    counted: list[int] = []
    with engine_of(_Poisoned(late_fake, 61), max_run_tokens=max_run_tokens) as engine:
        found = engine.infer("token_embedder", sequences, digest="f" * 64, advance=counted.append)
        nothing = engine.infer("token_embedder", [], digest="f" * 64, advance=counted.append)
    assert sorted(found.refused) == bad
    assert nothing.rows.shape == (0, found.rows.shape[1])
    assert sum(counted) == len(found.rows) == sum(lens)
    for i, rows in enumerate(np.split(found.rows, np.cumsum(lens)[:-1])):
        assert i in bad or np.array_equal(rows, computed("token_embedder", [sequences[i]]))
