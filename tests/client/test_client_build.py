"""From a catalogue to a published bundle, measured or not."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.errors import BundleError, CatalogueError, RepositoryError, ServerUnreachable
from skillserve.settings import IndexSettings
from skillserve_client import build_bundle, open_bundle
from skillserve_client.shelf import locked


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
    with pytest.raises(RepositoryError, match="--models"):
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
    from skillserve.metrics import evaluate
    from skillserve.settings import SearchSettings
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


def record_export(world: IndexSettings) -> Path:
    """Write the export's record of the embedder's files; returns its folder."""
    folder = world.models / "skill_embedder"
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "export.json").write_text(json.dumps({"files": files}))
    return folder


@pytest.mark.parametrize("name", ["card.json", "tokenizer.json"])
def test_a_file_that_is_not_the_exported_one_is_refused(
    name: str, world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    folder = record_export(world)
    build_bundle(catalogue, fake, index=world)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(RepositoryError, match=name.replace(".", r"\.")) as caught:
        build_bundle(catalogue, fake, index=world)
    assert "skillserve export" in caught.value.fix


@pytest.mark.parametrize("record", ["{}", "[]", "no json"])
def test_a_record_of_the_export_that_says_nothing_is_refused(
    record: str, world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    (record_export(world) / "export.json").write_text(record)
    with pytest.raises(RepositoryError, match=r"export\.json"):
        build_bundle(catalogue, fake, index=world)


def test_another_tokenizer_is_another_bundle(bundles: Path, world: IndexSettings, catalogue: Path, fake: Any) -> None:
    path = world.models / "skill_reranker" / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    assert not build_bundle(catalogue, fake, index=world).current
    assert (open_bundle(bundles).folder / "reranker.tokenizer.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("change", [{"version": "2"}, {"digests": {"embedder": "e" * 64, "reranker": "9" * 64}}])
def test_a_server_that_changes_during_the_run_is_refused(
    change: dict[str, Any], bundles: Path, world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    before, infer = (bundles / "CURRENT").read_text(), fake.infer

    def changing(*arguments: Any, **named: Any) -> Any:
        rows = infer(*arguments, **named)
        vars(fake).update(change)
        return rows

    fake.infer = changing
    with pytest.raises(RepositoryError, match="at the end of the run"):
        build_bundle(catalogue, fake, index=world, force=True)
    assert (bundles / "CURRENT").read_text() == before


def test_of_two_runs_at_once_the_second_to_finish_is_refused_unless_forced(
    bundles: Path, world: IndexSettings, catalogue: Path, fake: Any, new_fake: Any
) -> None:
    infer = fake.infer

    def overtaken(*arguments: Any, **named: Any) -> Any:
        build_bundle(catalogue, new_fake(), index=world, force=True)
        return infer(*arguments, **named)

    fake.infer = overtaken
    more = catalogue.with_name("more.jsonl")
    more.write_text(catalogue.read_text() + '{"id": "new", "name": "chart"}\n')
    with pytest.raises(BundleError, match="--force"):
        build_bundle(more, fake, index=world)
    assert open_bundle(bundles).manifest.num_skills == 5
    assert build_bundle(more, fake, index=world, force=True).manifest.num_skills == 6


def test_publishing_waits_for_another_run_that_publishes(
    bundles: Path, world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    with ThreadPoolExecutor() as pool:
        with locked(bundles):
            other = pool.submit(build_bundle, catalogue, fake, index=world, force=True)
            with pytest.raises(TimeoutError):
                other.result(timeout=1)
        assert other.result().manifest.version == open_bundle(bundles).version


def test_old_versions_go_and_what_is_not_ours_stays(world: IndexSettings, catalogue: Path, fake: Any) -> None:
    settings = world.model_copy(update={"keep": 3})
    built = [build_bundle(catalogue, fake, index=settings, force=True).manifest.version for _ in range(5)]
    (world.bundles / "notes").mkdir()
    built.append(build_bundle(catalogue, fake, index=settings, force=True).manifest.version)
    assert sorted(path.name for path in world.bundles.iterdir()) == sorted([".lock", "CURRENT", "notes", *built[-3:]])
    last = build_bundle(catalogue, fake, index=world.model_copy(update={"keep": 1}), force=True).manifest
    assert {path.name for path in world.bundles.glob("2*")} == {last.version, last.parent}


@pytest.mark.parametrize("models", ["nope", "skills.jsonl"])
def test_models_that_are_nowhere_name_flag_and_command(
    models: str, world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    with pytest.raises(RepositoryError, match="--models"):
        build_bundle(catalogue, fake, index=world.model_copy(update={"models": catalogue.with_name(models)}))


def test_bundles_that_cannot_be_a_folder_are_refused(world: IndexSettings, catalogue: Path, fake: Any) -> None:
    with pytest.raises(BundleError, match="--bundles"):
        build_bundle(catalogue, fake, index=world.model_copy(update={"bundles": catalogue}))
    with pytest.raises(BundleError, match="skillserve index"):
        open_bundle(catalogue)
