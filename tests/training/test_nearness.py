"""A reranker learns beside the scores that a search adds its logits to: words and parts are in them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from skillserve.card import read_card
from skillserve.fusion import FirstStageWeights
from skillserve.metrics import ranked
from skillserve.records import Query, Skill
from skillserve.settings import EvaluateSettings, Settings, TrainSettings
from skillserve.text import skill_text
from skillserve_training import TrainingData, hold_out, read_training_data, train_reranker
from skillserve_training import reranker as reranker_module
from skillserve_training.base import resolve_base
from skillserve_training.candidates import nearest_wrong_skills
from skillserve_training.comparison import Comparison
from skillserve_training.evaluate import Embedder
from skillserve_training.lists import Listing, tokenise_sides
from skillserve_training.mined import Mined
from skillserve_training.nearness import FirstStageScores, Likeness
from skillserve_training.systems import FirstStage, open_weights
from skillserve_training.weights import embedder_tokens, open_embedder, reranker_tokens

WEIGHTS = [
    FirstStageWeights(lexical=0.4, parts=1.5),
    FirstStageWeights(lexical=0.4),
    FirstStageWeights(parts=1.5),
]


@pytest.fixture
def long_data(tiny_data: Path) -> TrainingData:
    """Requests of four sentences, so that each has two parts, and some of one."""
    path = tiny_data / "queries" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[::2]:
        row["query"] = f"first {row['query']}. plan it now. keep the log. find {row['query'][-5:]}."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_training_data(tiny_data)


@pytest.fixture
def embedder(tiny_embedder: Path) -> Embedder:
    card = read_card(tiny_embedder)
    return Embedder(open_embedder(tiny_embedder), card, embedder_tokens(tiny_embedder, card), "float32")


def bm25(skills: Sequence[Skill], request: str) -> np.ndarray:
    """Lucene's BM25 written out, over words of two letters or more that are no English stop words."""
    stop_words = {"it", "the", "and", "now"}
    documents = [
        [word for word in re.findall(r"\b\w\w+\b", skill_text(skill).lower()) if word not in stop_words]
        for skill in skills
    ]
    mean_length = sum(map(len, documents)) / len(documents)
    scores = np.zeros(len(documents))
    for word in re.findall(r"\b\w\w+\b", request.lower()):
        if word in stop_words:
            continue
        df = sum(word in document for document in documents)
        idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        for place, document in enumerate(documents):
            tf = document.count(word)
            scores[place] += idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(document) / mean_length))
    return scores


def by_hand(embedder: Embedder, query: Query, skills: Sequence[Skill], weights: FirstStageWeights) -> np.ndarray:
    """First-stage scores `[S]`; sentences are told by their full stops."""

    def cosines(text: str) -> np.ndarray:
        rows, skill_rows = embedder.embed([Query(id="q", text=text)], skills)
        return np.asarray((rows @ skill_rows.T)[0], np.float64)

    def scored(text: str) -> np.ndarray:
        words = bm25(skills, text)
        share = words / words.max() if words.max() > 0 else words
        return cosines(text) + weights.lexical * share

    if not weights.parts:
        return scored(query.text)
    sentences = [sentence.strip() + "." for sentence in query.text.split(".") if sentence.strip()]
    parts = [" ".join(sentences[i : i + 3]) for i in range(len(sentences) - 2)] if len(sentences) > 3 else [query.text]
    pieces = np.stack([cosines(part) for part in parts])
    if weights.lexical:
        words = np.stack([bm25(skills, part) for part in parts])
        pieces = pieces + weights.lexical * words / (words.max() if words.max() > 0 else 1.0)
    return cosines(query.text) + weights.parts * pieces.max(axis=0)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_negatives_and_losses_see_first_stage_scores(
    weights: FirstStageWeights, embedder: Embedder, long_data: TrainingData
) -> None:
    nearness = FirstStage(embedder, weights).nearness(long_data.queries, long_data.skills)
    wrong = nearest_wrong_skills(nearness, long_data, last=9)
    position = {skill.id: place for place, skill in enumerate(long_data.skills)}
    for request, query in enumerate(long_data.queries[:6]):
        scores = by_hand(embedder, query, long_data.skills, weights)
        np.testing.assert_allclose(nearness.to_request(request, range(len(scores))), scores, atol=2e-6)
        np.testing.assert_allclose(nearness.to_request(request, [3, 0]), scores[[3, 0]], atol=2e-6)
        golds = {position[skill] for skill in long_data.golds[query.id]}
        found = [place for place in wrong[request].tolist() if place >= 0]
        assert not golds & set(found)
        best = np.sort(np.delete(scores, sorted(golds)))[::-1][:9]
        np.testing.assert_allclose(scores[found], best, atol=4e-6)


def test_ranking_wrong_skills_leaves_the_scores_as_they_are(embedder: Embedder, long_data: TrainingData) -> None:
    nearness = FirstStage(embedder, WEIGHTS[0]).nearness(long_data.queries, long_data.skills)
    before = nearness.block(0, len(long_data.queries))
    nearest_wrong_skills(nearness, long_data, last=5)
    assert nearness.block(0, len(long_data.queries)).tobytes() == before.tobytes()
    assert np.isfinite(before).all()


class _Logits(nn.Module):
    """A model whose logits are known."""

    def __init__(self, logits: Sequence[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, _pairs: Sequence[object]) -> Tensor:
        return self.logits


def test_the_loss_is_of_logits_with_weighted_first_stage_scores(
    embedder: Embedder, tiny_reranker: Path, long_data: TrainingData
) -> None:
    weights, rows = WEIGHTS[0], [Listing(0, (0, 5, 7)), Listing(2, (2, 1, 9))]
    texts = tokenise_sides(long_data, reranker_tokens(tiny_reranker, read_card(tiny_reranker)))
    nearness = FirstStage(embedder, weights).nearness(long_data.queries, long_data.skills)
    model = _Logits([0.3, -0.2, 0.1, 0.0, 0.5, -1.0])
    settings = TrainSettings(similarity_weight=4.0, holdout_share=0)
    loss = Comparison(texts, settings, nearness).backward(model, rows, lambda _: nullcontext())
    expected, gradient = 0.0, []
    for row, logits in zip(rows, np.split(model.logits.detach().numpy().astype(np.float64), 2), strict=True):
        scores = by_hand(embedder, long_data.queries[row.request], long_data.skills, weights)[list(row.skills)]
        shares = np.exp(logits + 4 * scores) / np.exp(logits + 4 * scores).sum()
        expected -= math.log(shares[0]) / len(rows)
        gradient += ((shares - [1, 0, 0]) / len(rows)).tolist()
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert model.logits.grad is not None
    np.testing.assert_allclose(model.logits.grad, gradient, atol=1e-5)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What a run gives its schedule and its loss."""
    found: dict[str, object] = {}
    schedule: Callable[..., object] = reranker_module.schedule_of_lists

    def scheduled(texts: object, negatives: object, settings: object) -> object:
        found["negatives"] = negatives
        return schedule(texts, negatives, settings)

    def compared(texts: object, settings: object, nearness: object) -> object:
        found["nearness"] = nearness
        return Comparison(texts, settings, nearness)  # type: ignore[arg-type]

    monkeypatch.setattr(reranker_module, "schedule_of_lists", scheduled)
    monkeypatch.setattr(reranker_module, "Comparison", compared)
    return found


def test_a_reranker_is_trained_beside_what_is_served(
    tiny_embedder: Path,
    tiny_settings: TrainSettings,
    long_data: TrainingData,
    seen: dict[str, object],
    tmp_path: Path,
) -> None:
    """Scores and negatives are those of the system that `skillserve evaluate` opens with the same weights."""
    both = {"lexical_weight": 0.4, "part_weight": 1.5}
    settings = tiny_settings.model_copy(update={"epochs": 1.0, "ranks": "2-6", "similarity_weight": 3.0, **both})
    base = resolve_base(str(tiny_embedder))
    train_reranker(long_data, base, base, settings, tmp_path / "out")
    part, _ = hold_out(long_data, share=settings.holdout_share)
    system = open_weights(str(tiny_embedder), Settings(evaluate=EvaluateSettings(**both)))
    run = system.rank(part.queries, part.skills, depth=len(part.skills))
    nearness, negatives = seen["nearness"], seen["negatives"]
    assert isinstance(nearness, FirstStageScores)
    assert isinstance(negatives, list)
    for request, query in enumerate(part.queries):
        scores = nearness.to_request(request, range(len(part.skills)))
        assert scores.tolist() == [run[query.id][skill.id] for skill in part.skills]
        wrong = [skill for skill in ranked(run[query.id]) if skill not in part.golds[query.id]][1:6]
        drawn = [part.skills[place].id for place in negatives[request]]
        assert [run[query.id][skill] for skill in drawn] == [run[query.id][skill] for skill in wrong]


def test_a_run_computes_no_more_of_the_first_stage_than_it_needs(
    tiny_embedder: Path,
    tiny_settings: TrainSettings,
    long_data: TrainingData,
    seen: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, settings = resolve_base(str(tiny_embedder)), tiny_settings.model_copy(update={"epochs": 1.0})
    train_reranker(long_data, base, base, settings.model_copy(update={"similarity_weight": 2.0}), tmp_path / "plain")
    assert isinstance(seen["nearness"], Likeness)

    part, _ = hold_out(long_data, share=settings.holdout_share)
    skills = [skill.id for skill in part.skills]
    wrong = {query.id: tuple(s for s in skills if s not in part.golds[query.id])[:4] for query in part.queries}
    mined = Mined(wrong, {"part": part.part_digest, "cut": part.cut})
    monkeypatch.setattr(FirstStage, "nearness", lambda *_: pytest.fail("the training part was scored"))
    words = settings.model_copy(update={"lexical_weight": 0.4})
    train_reranker(long_data, base, base, words, tmp_path / "mined", mined=mined)
    assert seen["nearness"] is None
