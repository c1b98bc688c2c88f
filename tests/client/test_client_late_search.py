"""Searches and jobs over a bundle with token embeddings: the same answers, and the server reads the request alone."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from skillserve.cli import main
from skillserve.errors import BundleError, DeadlineExceeded, RepositoryError, RequestRejected, SkillserveError
from skillserve.max_sim import Interaction
from skillserve.records import Answer
from skillserve.settings import ClientSettings, IndexSettings, SearchSettings
from skillserve_client import AsyncSearcher, Bundle, Searcher, Triton, build_bundle, open_bundle
from skillserve_client.token_embeddings import TokenEmbeddings

QUERIES = ["resize photo", "merge pdf table", "git commit tests", "send email", "chart", "deploy cloud rust sheet"]
WORST_SCORE = 0.1
"""Ten times (the scale) what eight bits may turn a cosine by."""
DEEP = SearchSettings(rerank_depth=5, top_k=5)


@pytest.fixture(params=["blocking", "asyncio"])
def search(request: pytest.FixtureRequest, late_bundle: Bundle, late_fake: Any) -> Callable[..., Answer]:
    def run(query: str, **named: Any) -> Answer:
        if request.param == "blocking":
            return Searcher(late_bundle, late_fake, DEEP).search(query, **named)
        return asyncio.run(AsyncSearcher(late_bundle, late_fake.awaited(), DEEP).search(query, **named))

    return run


def without_tokens(world: IndexSettings, catalogue: Path, fake: Any) -> Bundle:
    """A bundle of the same reranker, which is asked about pairs."""
    plain = world.model_copy(update={"token_embeddings": 0, "bundles": world.bundles.parent / "plain"})
    build_bundle(catalogue, fake, index=plain)
    return open_bundle(plain.bundles)


def test_scores_and_order_are_those_of_pairs_and_the_server_reads_the_request_alone(
    search: Callable[..., Answer], late_world: IndexSettings, catalogue: Path, late_bundle: Bundle, late_fake: Any
) -> None:
    pairs = Searcher(without_tokens(late_world, catalogue, late_fake), late_fake, DEEP)
    for query in QUERIES:
        wanted = pairs.search(query)
        late_fake.calls.clear()
        answer = search(query)
        assert answer.status == wanted.status == "ok"
        assert answer.reranked
        assert answer.digests == wanted.digests == late_bundle.digests
        assert [hit.skill_id for hit in answer.hits] == [hit.skill_id for hit in wanted.hits]
        for hit, other in zip(answer.hits, wanted.hits, strict=True):
            assert hit.score == pytest.approx(other.score, abs=WORST_SCORE)
            assert hit.similarity == other.similarity
        assert [role for role, _, _ in late_fake.calls] == ["embedder", "token_embedder"]
        (asked,) = late_fake.calls[1][1]
        reranker = late_bundle.corpus.require_reranker()
        assert asked.tolist() == [2, *reranker.query(query).ids.tolist(), 3]


def test_both_ways_are_measured_alike(
    late_world: IndexSettings, catalogue: Path, late_fake: Any, judged_file: Path
) -> None:
    plain = late_world.model_copy(update={"token_embeddings": 0, "bundles": late_world.bundles.parent / "plain"})
    by_pairs = build_bundle(catalogue, late_fake, index=plain, queries=judged_file, search=DEEP).quality
    late_fake.calls.clear()
    by_tokens = build_bundle(catalogue, late_fake, index=late_world, queries=judged_file, search=DEEP).quality
    assert by_tokens is not None
    assert by_tokens == by_pairs
    assert "reranker" not in {role for role, _, _ in late_fake.calls}


@pytest.mark.parametrize(
    "error",
    [
        RequestRejected("fake", got="NaN", wanted="numbers", fix="None."),
        RepositoryError("fake", got="unloaded", wanted="a model", fix="Load it."),
        None,
    ],
)
def test_without_the_token_embedder_in_time_the_first_stage_answers(
    search: Callable[..., Answer], error: SkillserveError | None, late_fake: Any
) -> None:
    if error is None:
        late_fake.delays_s["token_embedder"] = 3600.0
    else:
        late_fake.failures["token_embedder"] = error
    answer = search("merge pdf", deadline_ms=30_000)
    assert (answer.status, answer.reranked, len(answer.hits)) == ("degraded", False, 5)
    assert ("30000 ms was too near" if error is None else error.got) in "\n".join(answer.notes)
    assert [hit.score for hit in answer.hits] == sorted((hit.score for hit in answer.hits), reverse=True)


@pytest.mark.parametrize("what", ["window", "scale", "dimensions", "weights", "nothing"])
def test_another_token_embedder_than_the_bundles_is_refused_at_connect(
    what: str, late_bundle: Bundle, late_fake: Any
) -> None:
    if what == "window":
        late_fake.interaction = Interaction(window=5, scale=10.0)
    elif what == "scale":
        late_fake.interaction = Interaction(window=4, scale=11.0)
    elif what == "dimensions":
        late_fake.token_dim = 9
    elif what == "weights":
        late_fake.digests["token_embedder"] = "a" * 64
    else:
        del late_fake.digests["token_embedder"]
    kind = RepositoryError if what == "nothing" else BundleError
    with pytest.raises(kind):
        Searcher(late_bundle, late_fake)
    with pytest.raises(kind):
        asyncio.run(AsyncSearcher(late_bundle, late_fake.awaited()).check())
    assert not late_fake.calls
    Searcher(late_bundle, late_fake, SearchSettings(rerank_depth=0))  # which asks the embedder alone


def test_the_loop_serves_others_while_scores_are_computed(
    late_bundle: Bundle, late_fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, others_were_served, compute = threading.Event(), threading.Event(), TokenEmbeddings.scores

    def scores(self: TokenEmbeddings, *arguments: Any) -> Any:
        begun.set()
        assert others_were_served.wait(30)
        return compute(self, *arguments)

    async def run() -> Answer:
        searching = asyncio.create_task(AsyncSearcher(late_bundle, late_fake.awaited(), DEEP).search("merge pdf"))
        assert await asyncio.to_thread(begun.wait, 30)
        others_were_served.set()
        return await searching

    monkeypatch.setattr(TokenEmbeddings, "scores", scores)
    assert asyncio.run(run()).hits[0].skill_id == "pdf"


def test_a_deadline_begins_with_the_call_and_not_when_a_thread_is_free(late_bundle: Bundle, late_fake: Any) -> None:
    """A search that waits for a thread has that much less time."""
    free = threading.Event()

    async def run() -> None:
        searcher = AsyncSearcher(late_bundle, late_fake.awaited(), DEEP)
        searcher._threads = ThreadPoolExecutor(1)
        searcher._threads.submit(free.wait, 30)
        searching = asyncio.create_task(searcher.search("merge pdf", deadline_ms=1))
        await asyncio.sleep(0.01)
        free.set()
        with pytest.raises(DeadlineExceeded, match="embedding the request"):
            await searching

    asyncio.run(run())


def test_commands_build_and_search_through_sockets(
    late_world: IndexSettings,
    catalogue: Path,
    late_wire_server: Any,
    wire_settings: ClientSettings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    where = ["--bundles", str(late_world.bundles), "--url", wire_settings.url]
    index = ["index", str(catalogue), "--models", str(late_world.models), *where, "--json"]
    assert main(index) == 0
    plain = capsys.readouterr()
    assert json.loads(plain.out)["token_embeddings"] == 0
    assert "--token-embeddings 320 the bundle keeps" in " ".join(plain.err.split())
    assert main([*index, "--token-embeddings", "40"]) == 0
    kept = capsys.readouterr()
    assert (json.loads(kept.out)["token_embeddings"], json.loads(kept.out)["status"]) == (40, "published")
    assert "--token-embeddings" not in kept.err
    late_wire_server.requests.clear()
    late_wire_server.asked.clear()
    assert main(["search", "merge pdf", *where, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["reranked"], answer["hits"][0]["skill_id"]) == (True, "pdf")
    assert set(late_wire_server.asked) == {"embedder", "token_embedder"}
    assert [request["seq_lens"].tolist() for request in late_wire_server.requests] == [[[4]], [[4]]]
    with Triton(wire_settings) as triton:
        blocking = Searcher(open_bundle(late_world.bundles), triton, DEEP).search("merge pdf")

    async def run() -> Answer:
        async with await AsyncSearcher.connect(late_world.bundles, client=wire_settings, settings=DEEP) as searcher:
            return await searcher.search("merge pdf")

    assert asyncio.run(run()).hits == blocking.hits
