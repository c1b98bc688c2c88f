"""Hybrid bundles: words beside similarities in search, measurement and calibration, and nothing of it at weight 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.card import read_card
from skillserve.console import progress
from skillserve.errors import BundleError, ConfigError, ServerUnreachable
from skillserve.fusion import FirstStageWeights
from skillserve.lexical import LexicalIndex
from skillserve.metrics import evaluate, ranked
from skillserve.records import Answer, Query
from skillserve.settings import EvaluateSettings, IndexSettings, SearchSettings, Settings
from skillserve.skillfile import read_skills
from skillserve.systems import open_system
from skillserve.text import skill_text
from skillserve_client import Bundle, Searcher, build_bundle, open_bundle
from skillserve_client.bundle import read_files
from skillserve_client.calibrate import calibrate_bundle
from skillserve_client.calibration import describe
from skillserve_client.samples import Asked, sample, score_requests
from skillserve_client.versions import publish

WEIGHT = 0.5
LEXICAL_FILE = "lexical.bm25"
RARE = "kubectl"


@pytest.fixture
def catalogue(catalogue: Path) -> Path:
    """The five skills, and one whose rare word stands behind what the embedder reads of it."""
    hidden = {"id": "hidden", "name": "chart", "description": "plot chart", "body": "cloud " * 60 + RARE}
    catalogue.write_text(catalogue.read_text() + json.dumps(hidden) + "\n")
    return catalogue


@pytest.fixture
def hybrid(world: IndexSettings, catalogue: Path, fake: Any) -> Bundle:
    """A bundle that weighs words with 0.5."""
    build_bundle(catalogue, fake, index=world.model_copy(update={"lexical_weight": WEIGHT}))
    fake.calls.clear()
    return open_bundle(world.bundles)


def search(bundle: Bundle, fake: Any, query: str, **settings: Any) -> Answer:
    wanted = {"rerank_depth": 0, "top_k": 6, "abstain": False} | settings
    return Searcher(bundle, fake, SearchSettings(**wanted)).search(query)


def by_hand(bundle: Bundle, fake: Any, query: str) -> tuple[dict[str, float], dict[str, float]]:
    """Similarities and first-stage scores of all skills."""
    skills = [bundle.corpus.skills.skill(row) for row in range(len(bundle.corpus.skills))]
    vectors = fake.infer("embedder", bundle.corpus.embedder.skills(skills))
    near = vectors @ fake.infer("embedder", [bundle.corpus.embedder.query(query).ids])[0]
    words = LexicalIndex.build([skill_text(skill) for skill in skills]).scores([query])[0]
    ids = [skill.id for skill in skills]
    scores = near + WEIGHT * words / words.max()
    return dict(zip(ids, near.tolist(), strict=True)), dict(zip(ids, scores.tolist(), strict=True))


def test_a_rare_word_finds_a_skill_that_embeddings_miss(hybrid: Bundle, fake: Any) -> None:
    query = f"table {RARE}"
    dense, both = (search(hybrid, fake, query, lexical_weight=weight).hits for weight in (0, 1))
    ranks = [[hit.skill_id for hit in hits].index("hidden") for hits in (dense, both)]
    assert ranks == [4, 0]


def test_hits_carry_the_first_stage_score_and_the_plain_similarity(hybrid: Bundle, fake: Any) -> None:
    query = f"merge pdf {RARE}"
    near, scores = by_hand(hybrid, fake, query)
    answer = search(hybrid, fake, query)
    assert [hit.skill_id for hit in answer.hits] == sorted(scores, key=lambda skill: -scores[skill])
    assert [hit.score for hit in answer.hits] == pytest.approx([scores[hit.skill_id] for hit in answer.hits])
    assert [hit.similarity for hit in answer.hits] == pytest.approx([near[hit.skill_id] for hit in answer.hits])
    assert list(near) != [hit.skill_id for hit in answer.hits]
    fake.failures["reranker"] = ServerUnreachable("fake", got="nothing", wanted="an answer", fix="Wait.")
    degraded = search(hybrid, fake, query, rerank_depth=3)
    assert (degraded.status, degraded.hits) == ("degraded", answer.hits)


def test_a_final_score_weighs_the_first_stage_score(
    world: IndexSettings, catalogue: Path, fake: Any, card_of: Callable[..., Any]
) -> None:
    card = card_of("reranker", similarity_weight=2.0)
    (world.models / "skill_reranker" / "card.json").write_text(card.model_dump_json())
    build_bundle(catalogue, fake, index=world.model_copy(update={"lexical_weight": WEIGHT}))
    bundle = open_bundle(world.bundles)
    query = f"merge pdf {RARE}"
    _, scores = by_hand(bundle, fake, query)
    rows = {skill: row for row, skill in enumerate(bundle.corpus.skills.ids())}
    hits = search(bundle, fake, query, rerank_depth=6).hits
    assert bundle.corpus.reranker is not None
    pairs = bundle.corpus.pairs(bundle.corpus.reranker.query(query).ids, [rows[hit.skill_id] for hit in hits])
    expected = fake.infer("reranker", pairs) + 2 * np.array([scores[hit.skill_id] for hit in hits])
    assert [hit.score for hit in hits] == pytest.approx(expected.tolist())


@pytest.mark.parametrize("rerank_depth", [0, 3])
def test_weight_0_answers_as_a_bundle_without_words_bit_for_bit(
    rerank_depth: int, hybrid: Bundle, world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    build_bundle(catalogue, fake, index=world)
    plain = open_bundle(world.bundles)
    assert (plain.manifest.lexical_weight, plain.corpus.lexical) == (0.0, None)
    assert plain.manifest.files.keys() == hybrid.manifest.files.keys() - {LEXICAL_FILE}
    for query in ("merge pdf", f"cloud {RARE}", "the and"):
        answers = [
            search(plain, fake, query, rerank_depth=rerank_depth),
            search(hybrid, fake, query, rerank_depth=rerank_depth, lexical_weight=0),
        ]
        assert answers[0].hits == answers[1].hits
    assert search(hybrid, fake, "zzz qqq").hits == search(plain, fake, "zzz qqq").hits  # no skill has these words


def test_a_weight_on_a_bundle_without_words_names_the_command(bundles: Path, fake: Any) -> None:
    bundle = open_bundle(bundles)
    with pytest.raises(ConfigError, match=r"skillserve index CATALOGUE --lexical-weight 0\.3"):
        Searcher(bundle, fake, SearchSettings(lexical_weight=0.3))
    assert not fake.calls


def test_another_weight_is_another_bundle_and_the_same_catalogue_the_same_bytes(
    hybrid: Bundle, world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    settings = world.model_copy(update={"lexical_weight": WEIGHT})
    assert build_bundle(catalogue, fake, index=settings).current
    again = build_bundle(catalogue, fake, index=settings.model_copy(update={"lexical_weight": 0.25}))
    assert (again.current, again.manifest.lexical_weight) == (False, 0.25)
    assert again.manifest.files[LEXICAL_FILE] == hybrid.manifest.files[LEXICAL_FILE]
    assert not build_bundle(catalogue, fake, index=world).current


def test_an_old_manifest_without_a_weight_still_opens(bundles: Path) -> None:
    """As a version folder, which CURRENT does not vouch for."""
    bundle = open_bundle(bundles)
    path = bundle.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["lexical_weight"]
    path.write_text(json.dumps(manifest))
    assert open_bundle(bundle.folder).manifest == bundle.manifest


def published(bundle: Bundle, *, weight: float = WEIGHT, **changes: bytes | None) -> Path:
    """The bundle published anew with other lexical bytes or weight, as somebody who means harm would."""
    lexical = changes.get("lexical", read_files(bundle)[LEXICAL_FILE])
    files = {name: content for name, content in read_files(bundle).items() if name != LEXICAL_FILE}
    manifest = bundle.manifest
    publish(
        bundle.folder.parent,
        files=files | ({} if lexical is None else {LEXICAL_FILE: lexical}),
        num_skills=manifest.num_skills,
        dim=manifest.dim,
        catalogue=manifest.catalogue_digest,
        models=manifest.models,
        weights=FirstStageWeights(lexical=weight),
    )
    return bundle.folder.parent


def test_half_of_a_hybrid_bundle_is_refused(hybrid: Bundle) -> None:
    for changes in ({"weight": 0.0}, {"lexical": None}):
        with pytest.raises(BundleError, match="half of a hybrid"):
            open_bundle(published(hybrid, **changes))  # type: ignore[arg-type]


def test_a_damaged_lexical_index_is_refused_by_name(hybrid: Bundle) -> None:
    others = LexicalIndex.build(["one skill", "another skill"]).to_bytes()
    with pytest.raises(BundleError, match=r"lexical\.bm25.*words of 2 skills"):
        open_bundle(published(hybrid, lexical=others))
    with pytest.raises(BundleError, match=r"lexical\.bm25"):
        open_bundle(published(hybrid, lexical=b"nonsense"))
    path = hybrid.folder / LEXICAL_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"lexical\.bm25.*SHA-256"):
        open_bundle(hybrid.folder)


def test_both_stages_are_measured_as_hybrid_searches_rank(
    world: IndexSettings, catalogue: Path, fake: Any, judged_file: Path
) -> None:
    rare = {"id": "q5", "query": f"resize image {RARE}", "skill_ids": ["hidden"]}
    judged_file.write_text(judged_file.read_text() + json.dumps(rare) + "\n")
    settings = world.model_copy(update={"lexical_weight": 5.0})
    quality = build_bundle(catalogue, fake, index=settings, queries=judged_file).quality
    plain = build_bundle(catalogue, fake, index=world, queries=judged_file, force=True).quality
    build_bundle(catalogue, fake, index=settings, force=True)
    rows = [json.loads(line) for line in judged_file.read_text().splitlines()]
    qrels = {row["id"]: dict.fromkeys(row["skill_ids"], 1) for row in rows if row["skill_ids"]}
    bundle = open_bundle(world.bundles)
    assert quality is not None
    assert plain is not None
    for depth, figures in ((0, quality.first_stage), (20, quality.two_stage)):
        run = {
            row["id"]: {hit.skill_id: -float(hit.rank) for hit in answer.hits}
            for row in rows
            for answer in [search(bundle, fake, row["query"], rerank_depth=depth)]
        }
        expected = evaluate(run, qrels)
        assert figures == {name: pytest.approx(expected[name]) for name in figures or {}}
    assert quality.first_stage["ndcg@10"] > plain.first_stage["ndcg@10"]


@pytest.mark.parametrize("depth", [0, 4])
def test_samples_of_a_calibration_have_the_features_of_hybrid_searches(depth: int, hybrid: Bundle, fake: Any) -> None:
    """Scores are blended; similarity and background are those of the nearest skills, whatever words say."""
    query = f"resize image {RARE}"
    scored = score_requests(hybrid, [Asked(text=query, golds=frozenset({"hidden"}))], fake, depth, progress)
    found = sample(scored, "rerank" if depth else "embed", depth or 20)
    hits = search(hybrid, fake, query, rerank_depth=depth).hits
    near, _ = by_hand(hybrid, fake, query)
    for place, left_out in enumerate([set(), {"hidden"}]):
        nearest = sorted((value for skill, value in near.items() if skill not in left_out), reverse=True)
        assert found.features["similarity"][place] == pytest.approx(nearest[0])
        assert found.features["background"][place] == pytest.approx(np.mean(nearest))
    considered = np.array([hit.score for hit in hits[: depth or 20]])
    expected = describe(considered, np.array(sorted(near.values(), reverse=True)))
    assert {name: values[0] for name, values in found.features.items()} == pytest.approx(expected)


def test_a_calibration_holds_for_the_weight_that_it_was_fitted_with(
    world: IndexSettings, fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["resize", "image", "photo", "pdf", "merge", "table", "sheet", "email", "send", "git", "commit", "chart"]
    skills = [{"id": f"{a}-{b}", "name": a, "description": f"{a} {b}"} for a, b in combinations(words, 2)]
    known = [{"id": row["id"], "query": row["description"], "skill_ids": [row["id"]]} for row in skills]
    none = [{"id": f"n{i}", "query": f"{a} {b} {c}"} for i, (a, b, c) in enumerate(combinations("qwkxzj", 3))]
    paths = []
    for name, rows in (("skills", skills), ("known", known), ("none", none)):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    catalogue, *requests = paths
    settings = world.model_copy(update={"lexical_weight": WEIGHT})
    build_bundle(catalogue, fake, index=settings)
    assert calibrate_bundle(fake, *requests, index=settings).manifest.lexical_weight == WEIGHT
    bundle = open_bundle(world.bundles)
    assert bundle.calibration is not None
    assert bundle.calibration.lexical_weight == WEIGHT
    assert search(bundle, fake, "merge pdf").probability is not None
    other = search(bundle, fake, "merge pdf", lexical_weight=0, abstain=True)
    assert other.probability is None
    assert other.notes == ("cannot abstain: calibrated for the weights lexical 0.5, parts 0, not lexical 0, parts 0",)
    assert build_bundle(catalogue, fake, index=settings, force=True).calibrated
    assert not build_bundle(catalogue, fake, index=world).calibrated
    assert "first-stage weights changed" in capsys.readouterr().err


def test_weights_in_process_and_a_served_hybrid_bundle_rank_alike(
    world: IndexSettings, sample_data: Path, tiny_embedder: Path, new_fake: Any
) -> None:
    from skillserve_training.forward import embed_all
    from skillserve_training.weights import open_embedder

    model, card = open_embedder(tiny_embedder), read_card(tiny_embedder)
    for name in ("card.json", "tokenizer.json"):
        (world.models / "skill_embedder" / name).write_bytes((tiny_embedder / name).read_bytes())
    (world.models / "skill_reranker" / "card.json").unlink()
    fake = new_fake({"embedder": card.digest, "reranker": ""})
    described = replace(fake.served("embedder"), dim=card.dim)
    fake.served = lambda _: described

    def infer(role: str, sequences: Any, **_: Any) -> Any:
        assert role == "embedder"
        return embed_all(model, sequences, card, "float32").numpy()

    fake.infer = infer
    source = sample_data / "skills" / "test.jsonl"
    two_jobs = (
        "Find the slow sql query. Explain its plan. Add the index. One more thing: rename my photos. By date taken."
    )
    texts = ["slow sql query", "Rename my photos", "zzz", two_jobs]
    queries = [Query(id=str(i), text=text) for i, text in enumerate(texts)]
    for words, parts in ((0.0, 0.0), (0.2, 0.0), (1.0, 0.0), (0.0, 1.0), (0.2, 0.5)):
        weights = {"lexical_weight": words, "part_weight": parts}
        build_bundle(source, fake, index=world.model_copy(update=weights))
        settings = Settings(evaluate=EvaluateSettings(**weights))
        run = open_system(str(tiny_embedder), settings).rank(queries, read_skills(source), depth=10)
        for query in queries:
            served = search(open_bundle(world.bundles), fake, query.text, top_k=10).hits
            assert ranked(run[query.id]) == [hit.skill_id for hit in served]
            scores = [hit.score for hit in served]
            np.testing.assert_allclose([run[query.id][hit.skill_id] for hit in served], scores, atol=1e-5)
