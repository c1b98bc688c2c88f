"""The search plan and both searchers over a fake server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillserve.errors import (
    BundleError,
    ConfigError,
    DeadlineExceeded,
    QueryError,
    RequestRejected,
    ServerOverloaded,
    ServerUnreachable,
    SkillserveError,
)
from skillserve.records import Answer
from skillserve.settings import ClientSettings, IndexSettings, SearchSettings
from skillserve_client import AsyncSearcher, Searcher, build_bundle, open_bundle
from skillserve_client.manifest import Quality
from skillserve_client.plan import order_reranked, plan_search, proceed

Search = Callable[..., Answer]


@pytest.fixture(params=["blocking", "asyncio"])
def search(request: pytest.FixtureRequest, bundles: Path, fake: Any) -> Search:
    """One search through either searcher: `search(query, settings=…, deadline_ms=…)`."""

    def run(query: str, *, settings: SearchSettings | None = None, **named: Any) -> Answer:
        bundle = open_bundle(bundles)
        if request.param == "blocking":
            return Searcher(bundle, fake, settings).search(query, **named)
        return asyncio.run(AsyncSearcher(bundle, fake.awaited(), settings).search(query, **named))

    return run


def ids(answer: Answer) -> list[str]:
    """Skill ids in order."""
    return [hit.skill_id for hit in answer.hits]


UNCALIBRATED = ("cannot abstain: this bundle is not calibrated (skillserve calibrate)",)
QUIET = SearchSettings(abstain=False)


def error(kind: type[SkillserveError]) -> SkillserveError:
    """Any error of this kind."""
    return kind("server at x", got="words", wanted="others", fix="Wait.")


def test_a_request_finds_its_skill_and_the_answer_says_how(search: Search, bundles: Path) -> None:
    answer = search("merge pdf")
    assert answer.status == "ok"
    assert answer.reranked
    assert answer.notes == UNCALIBRATED
    assert answer.probability is None
    assert ids(answer)[0] == "pdf"
    assert [hit.rank for hit in answer.hits] == [1, 2, 3, 4, 5]
    assert [hit.score for hit in answer.hits] == sorted((hit.score for hit in answer.hits), reverse=True)
    assert answer.bundle == open_bundle(bundles).version
    assert answer.digests == {"embedder": "e" * 64, "reranker": "f" * 64}
    assert list(answer.timings_ms) == ["tokenise", "embed", "candidates", "rerank", "total"]
    parts = sum(ms for stage, ms in answer.timings_ms.items() if stage != "total")
    assert parts <= answer.timings_ms["total"] + 0.01
    json.dumps(answer.to_dict(), allow_nan=False)


def test_similarities_are_inner_products_of_what_the_server_embeds(search: Search, bundles: Path, fake: Any) -> None:
    answer = search("git commit", settings=SearchSettings(rerank_depth=0))
    corpus = open_bundle(bundles).corpus
    query = fake.infer("embedder", [corpus.embedder.query("git commit").ids])[0]
    skills = [corpus.skills.skill(row) for row in range(5)]
    similarities = fake.infer("embedder", corpus.embedder.skills(skills)) @ query
    assert ids(answer) == [skills[i].id for i in np.argsort(-similarities)]
    assert [hit.similarity for hit in answer.hits] == pytest.approx(sorted(similarities.tolist(), reverse=True))
    assert not answer.reranked
    assert answer.status == "ok"
    assert "rerank" not in answer.timings_ms
    assert answer.digests == {"embedder": "e" * 64}


def test_candidates_beyond_the_depth_follow_as_the_index_ordered_them(search: Search) -> None:
    first = search("resize photo", settings=SearchSettings(rerank_depth=0))
    mixed = search("resize photo", settings=SearchSettings(rerank_depth=2))
    assert ids(mixed)[2:] == ids(first)[2:]
    assert set(ids(mixed)[:2]) == set(ids(first)[:2])
    assert [hit.reranked for hit in mixed.hits] == [True, True, False, False, False]
    assert [hit.score for hit in mixed.hits[2:]] == [hit.similarity for hit in mixed.hits[2:]]


def test_only_the_first_candidates_are_sent_to_the_reranker(search: Search, fake: Any) -> None:
    search("resize photo", settings=SearchSettings(rerank_depth=3, candidates=4, top_k=2))
    assert [(role, len(sequences)) for role, sequences, _ in fake.calls] == [("embedder", 1), ("reranker", 3)]


def test_fewer_candidates_than_hits_asked_for_are_raised_to_them(search: Search) -> None:
    assert len(search("pdf", settings=SearchSettings(candidates=1, top_k=4, rerank_depth=0)).hits) == 4


@given(st.lists(st.sampled_from([-1.0, 0.0, 2.5]), max_size=20), st.integers(0, 20))
def test_the_reranked_order_is_a_stable_permutation(scores: list[float], more: int) -> None:
    order = order_reranked(np.array(scores, np.float32), len(scores) + more).tolist()
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert order == expected + list(range(len(scores), len(scores) + more))


@pytest.mark.parametrize("query", ["", "   ", "\n\t", "\x00"])
def test_a_blank_request_is_refused_before_the_server_is_asked(query: str, search: Search, fake: Any) -> None:
    with pytest.raises(QueryError):
        search(query)
    assert not fake.calls


def test_a_long_request_is_answered_with_a_note_for_each_model(search: Search) -> None:
    answer = search("resize images " * 10_000, settings=QUIET)
    assert len(answer.notes) == 2
    assert all("24 tokens" in note and "were cut" in note for note in answer.notes)
    assert search("image " * 30).notes[0].endswith("read its first 24 tokens, 6 were cut")


@pytest.mark.parametrize("kind", [ServerOverloaded, ServerUnreachable, RequestRejected, DeadlineExceeded])
def test_a_failing_reranker_leaves_the_first_stage_and_says_why(
    kind: type[SkillserveError], search: Search, fake: Any
) -> None:
    expected = ids(search("merge pdf", settings=SearchSettings(rerank_depth=0)))
    fake.failures["reranker"] = error(kind)
    answer = search("merge pdf")
    assert (answer.status, answer.reranked, ids(answer)) == ("degraded", False, expected)
    assert kind.__name__ in answer.notes[0]
    assert answer.digests == {"embedder": "e" * 64}


@pytest.mark.parametrize("kind", [ServerOverloaded, ServerUnreachable, DeadlineExceeded])
def test_a_server_that_fails_to_embed_is_an_error(kind: type[SkillserveError], search: Search, fake: Any) -> None:
    fake.failures["embedder"] = error(kind)
    with pytest.raises(kind):
        search("merge pdf", deadline_ms=500)


def test_a_deadline_too_near_for_reranking_gives_the_first_stage(search: Search, fake: Any) -> None:
    fake.delays_s["reranker"] = 60
    answer = search("merge pdf", deadline_ms=2000)
    assert answer.status == "degraded"
    assert len(answer.hits) == 5
    assert "deadline of 2000 ms" in answer.notes[0]


def test_a_deadline_that_passes_while_embedding_is_told_with_its_own_flag(search: Search, fake: Any) -> None:
    fake.delays_s["embedder"] = 60
    with pytest.raises(DeadlineExceeded, match="--deadline-ms"):
        search("merge pdf", deadline_ms=20)
    assert [role for role, *_ in fake.calls] == ["embedder"]


def test_each_inference_gets_the_time_that_is_left(search: Search, fake: Any) -> None:
    search("merge pdf", deadline_ms=5000)
    (_, _, first), (_, _, left) = fake.calls
    assert 0 < left < first < 5


@pytest.mark.parametrize("changes", [{"top_k": 0}, {"deadline_ms": -1.0}])
def test_an_argument_out_of_range_is_refused(changes: dict[str, Any], search: Search) -> None:
    with pytest.raises(ConfigError):
        search("pdf", **changes)


@pytest.mark.parametrize("role", ["embedder", "reranker"])
def test_a_server_with_another_model_is_refused_with_both_digests(role: Any, search: Search, fake: Any) -> None:
    fake.digests[role] = "9" * 64
    own = {"embedder": "e", "reranker": "f"}[role] * 12
    with pytest.raises(BundleError, match="skillserve index") as caught:
        search("merge pdf")
    assert own in str(caught.value)
    assert "9" * 12 in str(caught.value)
    if role == "reranker":
        assert search("merge pdf", settings=SearchSettings(rerank_depth=0)).status == "ok"


def _with_quality(bundles: Path, helps: bool) -> Any:  # noqa: FBT001
    from dataclasses import replace

    first, second = ({"ndcg@10": value, "recall@10": 1.0, "completeness@10": 1.0} for value in (0.8, 0.6))
    two = first if helps else second
    quality = Quality(
        requests=40,
        queries_digest="a" * 64,
        k=10,
        candidates=50,
        rerank_depth=20,
        first_stage=first,
        two_stage=two,
        rerank_helps=helps,
    )
    return replace(open_bundle(bundles), quality=quality)


def test_a_reranker_that_was_measured_to_hurt_stays_off_unless_asked_for(bundles: Path, fake: Any) -> None:
    bundle = _with_quality(bundles, helps=False)
    answer = Searcher(bundle, fake).search("merge pdf")
    assert (answer.status, answer.reranked) == ("ok", False)
    assert all(words in answer.notes[0] for words in ("0.8000", "0.6000", "40 requests"))
    assert Searcher(bundle, fake, SearchSettings(rerank_depth=5)).search("merge pdf").reranked
    assert Searcher(_with_quality(bundles, helps=True), fake).search("merge pdf").reranked


def test_a_bundle_without_a_reranker_answers_with_a_note(world: IndexSettings, catalogue: Path, fake: Any) -> None:
    (world.models / "skill_reranker" / "card.json").unlink()
    build_bundle(catalogue, fake, index=world)
    bundle = open_bundle(world.bundles)
    answer = Searcher(bundle, fake, QUIET).search("merge pdf")
    assert (answer.status, answer.reranked, len(answer.notes)) == ("ok", False, 1)
    assert Searcher(bundle, fake, SearchSettings(rerank_depth=0)).search("merge pdf").notes == UNCALIBRATED


def test_the_plan_needs_nobody_but_its_caller(bundles: Path, computed: Callable[[Any, Sequence[Any]], Any]) -> None:
    plan = plan_search(open_bundle(bundles), "merge pdf", SearchSettings())
    step = proceed(plan, None)
    roles = []
    while not isinstance(step, Answer):
        roles.append(step.role)
        step = proceed(plan, computed(step.role, step.sequences))
    assert roles == ["embedder", "reranker"]
    assert ids(step)[0] == "pdf"


def test_threads_and_tasks_share_a_searcher(bundles: Path, fake: Any) -> None:
    searcher = Searcher(open_bundle(bundles), fake)
    queries = ["merge pdf", "git commit", "resize photo"] * 8
    alone = [ids(searcher.search(query)) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert [ids(answer) for answer in pool.map(searcher.search, queries)] == alone

    async def together() -> list[Answer]:
        asynchronous = AsyncSearcher(open_bundle(bundles), fake.awaited())
        return await asyncio.gather(*(asynchronous.search(query) for query in queries))

    assert [ids(answer) for answer in asyncio.run(together())] == alone


def test_both_searchers_connect_through_grpc(bundles: Path, wire_settings: ClientSettings) -> None:
    with Searcher.connect(bundles, client=wire_settings) as searcher:
        answer = searcher.search("merge pdf")

    async def run() -> Answer:
        async with await AsyncSearcher.connect(bundles, client=wire_settings) as asynchronous:
            return await asynchronous.search("merge pdf")

    again = asyncio.run(run())
    assert (answer.status, ids(answer)[0]) == ("ok", "pdf")
    assert (again.hits, again.digests) == (answer.hits, answer.digests)
