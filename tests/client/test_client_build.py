"""From a catalogue to a published bundle, measured or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.config import IndexSettings
from skillserve.errors import CardError, CatalogueError, RepositoryError, ServerUnreachable
from skillserve_client import build_bundle, open_bundle


def test_rows_stay_in_the_order_of_the_catalogue(bundles: Path, computed: Any) -> None:
    """Sequences travel sorted by length; nothing of that may show."""
    corpus = open_bundle(bundles).corpus
    skills = [corpus.skills.skill(row) for row in range(5)]
    assert [skill.id for skill in skills] == ["img", "pdf", "git", "bare", "evil"]
    vectors = computed("embedder", corpus.embedder.skills(skills))
    assert corpus.index.search(vectors, 1)[1].ravel().tolist() == [0, 1, 2, 3, 4]
    for row, expected in enumerate(corpus.reranker.skills(skills) if corpus.reranker else []):
        np.testing.assert_array_equal(corpus.skills.rerank_ids(row), expected)


def test_the_same_catalogue_again_is_current_until_something_changes(
    world: IndexSettings, catalogue: Path, fake: Any, judged_file: Path
) -> None:
    first = build_bundle(catalogue, fake, index=world)
    fake.calls.clear()
    again = build_bundle(catalogue, fake, index=world)
    assert (again.current, again.manifest) == (True, first.manifest)
    assert not fake.calls
    measured = build_bundle(catalogue, fake, index=world, queries=judged_file)
    assert (measured.current, measured.manifest.parent) == (False, first.manifest.version)
    assert build_bundle(catalogue, fake, index=world, queries=judged_file).current
    assert build_bundle(catalogue, fake, index=world).current
    assert not build_bundle(catalogue, fake, index=world, force=True).current
    catalogue.write_text(catalogue.read_text() + '{"id": "new", "name": "chart"}\n')
    assert build_bundle(catalogue, fake, index=world).manifest.num_skills == 6


def test_a_damaged_live_bundle_is_replaced(bundles: Path, world: IndexSettings, catalogue: Path, fake: Any) -> None:
    (open_bundle(bundles).folder / "index.faiss").write_bytes(b"x")
    assert not build_bundle(catalogue, fake, index=world).current
    assert open_bundle(bundles)


def test_faulty_lines_are_all_told_and_nothing_is_published(world: IndexSettings, catalogue: Path, fake: Any) -> None:
    catalogue.write_text(catalogue.read_text() + 'nonsense\n{"id": "x"}\n{"id": "img", "name": "again"}\n')
    with pytest.raises(CatalogueError) as caught:
        build_bundle(catalogue, fake, index=world)
    assert all(f"skills.jsonl:{line}" in caught.value.got for line in (6, 7, 8))
    assert not world.bundles.exists()
    assert not fake.calls


def test_an_id_that_is_no_utf8_is_refused(world: IndexSettings, catalogue: Path, fake: Any) -> None:
    catalogue.write_text('{"id": "a\\ud800", "name": "x"}\n')
    with pytest.raises(CatalogueError, match="surrogate"):
        build_bundle(catalogue, fake, index=world)


@pytest.mark.parametrize("role", ["embedder", "reranker"])
def test_a_repository_that_is_not_the_servers_is_refused(
    role: Any, world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    fake.digests[role] = "9" * 64
    with pytest.raises(RepositoryError, match="9" * 12):
        build_bundle(catalogue, fake, index=world)
    assert not fake.calls


def test_a_repository_without_an_embedder_or_tokenizer_is_refused(
    world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    (world.models / "skill_reranker" / "tokenizer.json").unlink()
    with pytest.raises(RepositoryError, match=r"tokenizer\.json"):
        build_bundle(catalogue, fake, index=world)
    (world.models / "skill_embedder" / "card.json").unlink()
    with pytest.raises(CardError):
        build_bundle(catalogue, fake, index=world)


def test_a_server_lost_on_the_way_leaves_the_live_bundle(
    bundles: Path, world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    before = (bundles / "CURRENT").read_text()
    fake.failures["embedder"] = ServerUnreachable("server", got="nothing", wanted="an answer", fix="Start it.")
    with pytest.raises(ServerUnreachable):
        build_bundle(catalogue, fake, index=world, force=True)
    assert (bundles / "CURRENT").read_text() == before


def test_both_stages_are_measured_as_searches_would_rank(
    world: IndexSettings, catalogue: Path, fake: Any, judged_file: Path
) -> None:
    from skillserve.config import SearchSettings
    from skillserve.metrics import evaluate
    from skillserve_client import Searcher

    quality = build_bundle(catalogue, fake, index=world, queries=judged_file).quality
    assert quality is not None
    assert quality.requests == 3
    rows = [json.loads(line) for line in judged_file.read_text().splitlines()]
    qrels = {row["id"]: dict.fromkeys(row["skill_ids"], 1) for row in rows if row["skill_ids"]}
    for depth, figures in ((0, quality.first_stage), (20, quality.two_stage)):
        searcher = Searcher(open_bundle(world.bundles), fake, SearchSettings(rerank_depth=depth, top_k=50))
        run = {
            row["id"]: {hit.skill_id: -float(hit.rank) for hit in searcher.search(row["query"]).hits} for row in rows
        }
        assert figures is not None
        expected = evaluate(run, qrels)
        assert figures == {name: pytest.approx(expected[name]) for name in figures}
    assert quality == open_bundle(world.bundles).quality


def test_a_reranker_that_hurts_is_found_out(
    world: IndexSettings, catalogue: Path, fake: Any, judged_file: Path
) -> None:
    honest = fake.score
    fake.score = lambda ids: -honest(ids)
    quality = build_bundle(catalogue, fake, index=world, queries=judged_file).quality
    assert quality is not None
    assert quality.two_stage is not None
    assert quality.two_stage["ndcg@10"] < quality.first_stage["ndcg@10"]
    assert quality.rerank_helps is False


def test_without_a_reranker_only_the_first_stage_is_measured(
    world: IndexSettings, catalogue: Path, fake: Any, judged_file: Path
) -> None:
    (world.models / "skill_reranker" / "card.json").unlink()
    quality = build_bundle(catalogue, fake, index=world, queries=judged_file).quality
    assert quality is not None
    assert (quality.two_stage, quality.rerank_helps) == (None, None)


def test_judgements_may_stand_in_a_file_of_their_own(
    world: IndexSettings, catalogue: Path, fake: Any, judged_file: Path, tmp_path: Path
) -> None:
    qrels = tmp_path / "qrels.jsonl"
    qrels.write_text('{"query_id": "q4", "skill_id": "img", "relevance": 1}\n')
    quality = build_bundle(catalogue, fake, index=world, queries=judged_file, qrels=qrels).quality
    assert quality is not None
    assert quality.requests == 1


@pytest.mark.parametrize("skill_id", ["", "elsewhere"])
def test_requests_that_measure_nothing_are_refused(
    skill_id: str, world: IndexSettings, catalogue: Path, fake: Any, tmp_path: Path
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"id": "q", "query": "pdf", "skill_ids": [skill_id] if skill_id else []}) + "\n")
    with pytest.raises(CatalogueError):
        build_bundle(catalogue, fake, index=world, queries=path)
    assert not world.bundles.exists()
