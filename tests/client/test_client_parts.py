"""Requests with parts: embedded together, scored as a reference in numpy scores them, and nothing of it at weight 0."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve import fusion, parts
from skillserve.console import progress
from skillserve.errors import BundleError, DeadlineExceeded, QueryError
from skillserve.lexical import LexicalIndex
from skillserve.metrics import evaluate
from skillserve.records import Answer
from skillserve.settings import ClientSettings, IndexSettings, SearchSettings
from skillserve.text import skill_text
from skillserve_client import AsyncSearcher, AsyncTriton, Bundle, Searcher, Triton, build_bundle, open_bundle
from skillserve_client.bundle import read_files
from skillserve_client.calibrate import calibrate_bundle
from skillserve_client.samples import Asked, sample, score_requests
from skillserve_client.versions import publish

PARTS, WORDS = 1.5, 0.5
SENTENCES = ("Resize image images.", "Plot a chart.", "Send email photo.", "Merge my pdf.", "Then git commit tests.")
LONG = " ".join(SENTENCES)
VERY_LONG = " ".join(f"{sentence} Deploy {'cloud ' * i}." for i, sentence in enumerate(SENTENCES * 5))
SHORT = "merge pdf and send email"


@pytest.fixture
def parted(world: IndexSettings, catalogue: Path, fake: Any) -> Bundle:
    """A bundle that weighs parts with 1.5 and words with 0.5."""
    build_bundle(catalogue, fake, index=world.model_copy(update={"part_weight": PARTS, "lexical_weight": WORDS}))
    fake.calls.clear()
    return open_bundle(world.bundles)


def search(bundle: Bundle, triton: Any, query: str, **settings: Any) -> Answer:
    wanted = {"rerank_depth": 0, "top_k": 6, "abstain": False} | settings
    return Searcher(bundle, triton, SearchSettings(**wanted)).search(query)


def by_hand(bundle: Bundle, fake: Any, texts: list[str], *, words: float) -> dict[str, float]:
    """First-stage scores of all skills for a request, the first of the texts, and its parts, the others."""
    skills = [bundle.corpus.skills.skill(row) for row in range(len(bundle.corpus.skills))]
    documents = fake.infer("embedder", bundle.corpus.embedder.skills(skills))
    near, *of_parts = (documents @ fake.infer("embedder", [bundle.corpus.embedder.query(t).ids])[0] for t in texts)
    lexical = LexicalIndex.build([skill_text(skill) for skill in skills]).scores(texts[1:])
    scores = near + PARTS * np.max(of_parts + words * lexical / lexical.max(), axis=0)
    return dict(zip((skill.id for skill in skills), scores.tolist(), strict=True))


@pytest.mark.parametrize("words", [0.0, WORDS])
def test_a_long_request_scores_by_itself_and_its_best_part(words: float, parted: Bundle, fake: Any) -> None:
    scores = by_hand(parted, fake, [LONG, *(" ".join(SENTENCES[i : i + 3]) for i in range(3))], words=words)
    answer = search(parted, fake, LONG, lexical_weight=words)
    assert [hit.skill_id for hit in answer.hits] == sorted(scores, key=lambda skill: -scores[skill])
    assert [hit.score for hit in answer.hits] == pytest.approx([scores[hit.skill_id] for hit in answer.hits])
    plain = search(parted, fake, LONG, lexical_weight=words, part_weight=0)
    near = {hit.skill_id: hit.similarity for hit in plain.hits}
    assert {hit.skill_id: hit.similarity for hit in answer.hits} == near  # of the whole request, as ever


def test_a_request_and_its_parts_are_embedded_in_one_call(parted: Bundle, fake: Any) -> None:
    for query, num in ((SHORT, 1), (LONG, 4), (VERY_LONG, 17)):
        fake.calls.clear()
        search(parted, fake, query)
        ((role, sequences, _),) = fake.calls
        assert (role, len(sequences)) == ("embedder", num)
        assert sequences[0].tolist() == parted.corpus.embedder.query(query).ids.tolist()


def test_a_request_is_taken_apart_once_a_search(parted: Bundle, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is embedded and what words are counted in are the same parts; without a weight there are none."""
    taken: list[str] = []
    monkeypatch.setattr(fusion, "request_parts", lambda text: taken.append(text) or parts.request_parts(text))
    search(parted, fake, LONG)
    assert taken == [LONG]
    score_requests(parted, [Asked(text=VERY_LONG, golds=frozenset())], fake, 0, progress)
    assert taken == [LONG, VERY_LONG]
    search(parted, fake, LONG, part_weight=0)
    assert len(taken) == 2


def test_the_note_on_a_long_request_says_what_was_read_of_its_parts(parted: Bundle, fake: Any) -> None:
    whole_parts, cut_parts = " ".join(SENTENCES * 2), VERY_LONG
    for request, part_weight in ((whole_parts, PARTS), (cut_parts, PARTS), (cut_parts, 0)):
        note, *_ = search(parted, fake, request, part_weight=part_weight).notes
        assert "read its first 24 tokens" in note
        cuts = [cut.num_cut > 0 for cut in parted.corpus.embedder.queries(parts.request_parts(request))]
        assert any(cuts) == (request == cut_parts)
        told = "and cut none of them" if not any(cuts) else f"but cut {sum(cuts)} of them, too"
        assert ("parts" in note) == (part_weight > 0)
        if part_weight:
            assert note.endswith(f"were cut; it also read each of the request's {len(cuts)} parts, {told}")
    assert not any("were cut" in note for note in search(parted, fake, SHORT).notes)


def test_a_short_request_ranks_as_without_parts_and_its_scores_grow_by_the_weight(
    world: IndexSettings, tmp_path: Path, fake: Any
) -> None:
    """Also where a sum in float32 makes two similarities equal: 500 skills of few words are close to each other."""
    words = ["resize", "image", "photo", "pdf", "merge", "table", "sheet", "email", "send", "git", "commit", "chart"]
    rows = [
        {"id": "-".join(three), "name": three[0], "description": " ".join(three)} for three in combinations(words, 3)
    ]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_bundle(tmp_path / "many.jsonl", fake, index=world)
    bundle = open_bundle(world.bundles)
    for query in (SHORT, "chart", "Resize photos. Merge them."):
        plain = search(bundle, fake, query, top_k=500).hits
        for weight in (0.1, 0.7, 1.0, 3.3, 1e7):
            hits = search(bundle, fake, query, top_k=500, part_weight=weight).hits
            assert [(hit.skill_id, hit.similarity) for hit in hits] == [(hit.skill_id, hit.similarity) for hit in plain]
            expected = [hit.score * (1 + weight) for hit in plain]
            assert [hit.score for hit in hits] == pytest.approx(expected, rel=1e-6)


def test_any_bundle_can_be_searched_with_parts_and_weight_0_is_without_them(
    parted: Bundle, world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    build_bundle(catalogue, fake, index=world)
    plain = open_bundle(world.bundles)
    for query in (SHORT, LONG, VERY_LONG):
        bare = search(parted, fake, query, lexical_weight=0, part_weight=0)
        assert search(plain, fake, query).hits == bare.hits
        assert search(plain, fake, query, part_weight=PARTS).hits == search(parted, fake, query, lexical_weight=0).hits


def test_a_request_with_parts_larger_than_the_servers_largest_is_answered_all_the_same(
    parted: Bundle, fake: Any, wire_server: Any, wire_settings: ClientSettings
) -> None:
    """It takes 64 tokens at once, and this request has 17 sequences of up to 24; blocking and asyncio alike."""
    expected = search(parted, fake, VERY_LONG).hits
    settings = SearchSettings(rerank_depth=0, top_k=6, abstain=False)
    with Triton(wire_settings) as triton:
        assert Searcher(parted, triton, settings).search(VERY_LONG).hits == expected
        assert Searcher(parted, triton, settings).search(VERY_LONG, deadline_ms=30_000).hits == expected
    assert len(wire_server.requests) > 2

    async def ask() -> Answer:
        async with AsyncTriton(wire_settings.model_copy(update={"num_in_flight": 1})) as triton:
            return await AsyncSearcher(parted, triton, settings).search(VERY_LONG)

    assert asyncio.run(ask()).hits == expected


def test_a_deadline_bounds_a_request_and_its_parts_together(parted: Bundle, fake: Any) -> None:
    fake.delays_s["embedder"] = 0.2
    with pytest.raises(DeadlineExceeded, match="embedding the request"):
        search(parted, fake, LONG, deadline_ms=100)


def test_a_blank_request_is_refused_and_unreadable_sentences_are_not(parted: Bundle, fake: Any) -> None:
    with pytest.raises(QueryError):
        search(parted, fake, "\n" * 9)
    for hostile in ("\ud800 \ud800. " * 9, "\x00 \x00.\n" * 9, "- - -\n" * 9):
        assert search(parted, fake, f"{hostile}{LONG}").status == "ok"


def test_other_weights_are_another_bundle(parted: Bundle, world: IndexSettings, catalogue: Path, fake: Any) -> None:
    settings = world.model_copy(update={"part_weight": PARTS, "lexical_weight": WORDS})
    assert build_bundle(catalogue, fake, index=settings).current
    again = build_bundle(catalogue, fake, index=settings.model_copy(update={"part_weight": 1.0}))
    assert (again.current, again.manifest.lexical_weight, again.manifest.part_weight) == (False, WORDS, 1.0)
    assert again.manifest.files.keys() == parted.manifest.files.keys()


def test_a_manifest_from_before_parts_opens_and_one_of_other_rules_does_not(parted: Bundle) -> None:
    """As version folders, which CURRENT does not vouch for."""
    path = parted.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    old = {name: value for name, value in manifest.items() if not name.startswith("part_")}
    path.write_text(json.dumps(old))
    assert open_bundle(parted.folder).corpus.weights.parts == 0
    path.write_text(json.dumps(manifest | {"part_format": "parts/0"}))
    with pytest.raises(BundleError, match=r"part format parts/0"):
        open_bundle(parted.folder)
    path.write_text(json.dumps(manifest | {"part_format": "parts/0", "part_weight": 0}))
    assert open_bundle(parted.folder).corpus.weights.lexical == WORDS


def test_both_stages_are_measured_as_searches_with_parts_rank(
    world: IndexSettings, catalogue: Path, fake: Any, judged_file: Path
) -> None:
    two = [{"id": f"q{i}", "query": text, "skill_ids": ["pdf", "git"]} for i, text in enumerate((LONG, VERY_LONG), 5)]
    judged_file.write_text(judged_file.read_text() + "".join(json.dumps(row) + "\n" for row in two))
    settings = world.model_copy(update={"part_weight": PARTS})
    quality = build_bundle(catalogue, fake, index=settings, queries=judged_file).quality
    rows = [json.loads(line) for line in judged_file.read_text().splitlines()]
    qrels = {row["id"]: dict.fromkeys(row["skill_ids"], 1) for row in rows if row["skill_ids"]}
    assert quality is not None
    for depth, figures in ((0, quality.first_stage), (20, quality.two_stage)):
        run = {
            row["id"]: {hit.skill_id: -float(hit.rank) for hit in answer.hits}
            for row in rows
            for answer in [search(open_bundle(world.bundles), fake, row["query"], rerank_depth=depth)]
        }
        expected = evaluate(run, qrels)
        assert figures == {name: pytest.approx(expected[name]) for name in figures or {}}


@pytest.mark.parametrize("depth", [0, 4])
def test_samples_of_a_calibration_have_the_scores_of_searches_with_parts(depth: int, parted: Bundle, fake: Any) -> None:
    asked = [Asked(text=text, golds=frozenset()) for text in (LONG, SHORT, VERY_LONG)]
    found = sample(score_requests(parted, asked, fake, depth, progress), "rerank" if depth else "embed", depth or 20)
    for place, request in enumerate(asked):
        hits = search(parted, fake, request.text, rerank_depth=depth).hits
        assert found.features["score"][place] == pytest.approx(hits[0].score)
        assert found.features["similarity"][place] == pytest.approx(max(hit.similarity for hit in hits))


@pytest.fixture
def calibrated(world: IndexSettings, fake: Any, tmp_path: Path) -> Callable[[], Bundle]:
    """The catalogue of this bundle is 66 pairs of words; it weighs parts, and is calibrated so."""
    words = ["resize", "image", "photo", "pdf", "merge", "table", "sheet", "email", "send", "git", "commit", "chart"]
    skills = [{"id": f"{a}-{b}", "name": a, "description": f"{a} {b}"} for a, b in combinations(words, 2)]
    known = [{"id": row["id"], "query": row["description"], "skill_ids": [row["id"]]} for row in skills]
    none = [{"id": f"n{i}", "query": f"{a} {b} {c}"} for i, (a, b, c) in enumerate(combinations("qwkxzj", 3))]
    paths = []
    for name, rows in (("many", skills), ("known", known), ("none", none)):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = world.model_copy(update={"part_weight": PARTS})
    build_bundle(paths[0], fake, index=settings)
    manifest = calibrate_bundle(fake, *paths[1:], index=settings).manifest
    assert manifest.part_weight == PARTS
    return lambda: open_bundle(world.bundles)


def test_a_calibration_holds_for_the_weights_that_it_was_fitted_with(
    calibrated: Callable[[], Bundle],
    world: IndexSettings,
    fake: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = calibrated()
    assert bundle.calibration is not None
    assert bundle.calibration.weights == bundle.corpus.weights
    assert search(bundle, fake, LONG).probability is not None
    other = search(bundle, fake, LONG, part_weight=1, abstain=True)
    assert other.probability is None
    assert other.notes[-1] == "cannot abstain: calibrated for the weights lexical 0, parts 1.5, not lexical 0, parts 1"
    settings = world.model_copy(update={"part_weight": PARTS})
    assert build_bundle(tmp_path / "many.jsonl", fake, index=settings, force=True).calibrated
    assert not build_bundle(tmp_path / "many.jsonl", fake, index=world).calibrated
    assert "first-stage weights changed" in capsys.readouterr().err


def test_a_bundle_with_the_calibration_of_other_weights_is_refused(calibrated: Callable[[], Bundle]) -> None:
    bundle = calibrated()
    manifest = bundle.manifest
    publish(
        bundle.folder.parent,
        files=read_files(bundle),
        num_skills=manifest.num_skills,
        dim=manifest.dim,
        catalogue=manifest.catalogue_digest,
        models=manifest.models,
    )
    with pytest.raises(BundleError, match=r"calibration with the weights lexical 0, parts 1\.5"):
        calibrated()
