"""Late interaction outside of a graph: scores against loops over tokens, and the sides of pairs read alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from skillserve.card import read_card
from skillserve.framing import RerankerTokens
from skillserve.max_sim import Interaction, max_sim, unit_rows
from skillserve.pairs import sides
from skillserve.probe import Probe
from skillserve.records import Skill
from skillserve.tensors import Role, weights_role
from skillserve.text import BERT_LATE_FRAME

SAME = 1e-4
"""Means of cosines, summed in float32 in another order, times a scale of 20."""
DIM = 4
OPENING, SEPARATOR = 2, 3

Array = npt.NDArray[Any]


def rows_of(rng: np.random.Generator, num: int) -> Array:
    """Random rows of tokens: every third weighs nothing, and rare ones a hundred times what common ones do."""
    directions = rng.normal(size=(num, DIM))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return (directions * rng.choice([0.0, 0.05, 5.0], (num, 1))).astype(np.float32)


def written_out(asked: Array, skill: Array, how: Interaction) -> float:
    """Stretch by stretch, token by token, in float64."""
    lengths = [math.sqrt(math.fsum(float(x) ** 2 for x in row)) for row in asked]
    offers = [row.astype(np.float64) for row in skill if np.any(row)]
    nearest = []
    for row, length in zip(asked.astype(np.float64), lengths, strict=True):
        cosines = [float(row @ offer) / length / float(np.sqrt(offer @ offer)) for offer in offers if length]
        nearest.append(max(cosines, default=-1.0))
    size = min(how.window, len(lengths))
    means = []
    for start in range(len(lengths) - size + 1):
        stretch = range(start, start + size)
        weight = math.fsum(lengths[place] for place in stretch)
        means.append(math.fsum(lengths[place] * nearest[place] for place in stretch) / weight if weight else 0.0)
    return how.scale * max(means)


def behind_each_other(skills: list[Array]) -> tuple[Array, Array]:
    """Rows of length 1 of all skills, and where each of them ends."""
    units = [unit_rows(skill) for skill in skills]
    return np.concatenate(units), np.cumsum([len(unit) for unit in units])


@settings(max_examples=100, deadline=None, database=None)
@given(
    num_asked=st.integers(1, 30),
    lens=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    window=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_scores_are_the_best_stretch_of_what_is_nearest(
    num_asked: int, lens: list[int], window: int, seed: int
) -> None:
    """Requests shorter and longer than a stretch, skills without a row, and many candidates as each alone."""
    rng = np.random.default_rng(seed)
    how = Interaction(window, 20.0)
    asked, skills = rows_of(rng, num_asked), [rows_of(rng, num) for num in lens]
    offered, ends = behind_each_other(skills)
    scores = max_sim(asked, offered, ends, how)
    assert (scores.dtype, scores.shape) == (np.float32, (len(lens),))
    np.testing.assert_allclose(scores, [written_out(asked, skill, how) for skill in skills], rtol=0, atol=SAME)
    alone = [max_sim(asked, *behind_each_other([skill]), how) for skill in skills]
    np.testing.assert_allclose(scores, np.concatenate(alone), rtol=0, atol=SAME)


def test_rows_of_8_bits_score_as_what_they_stand_for() -> None:
    rng = np.random.default_rng(3)
    how = Interaction(6, 20.0)
    asked, skills = rows_of(rng, 17), [rows_of(rng, num) for num in (9, 0, 20)]
    offered, ends = behind_each_other(skills)
    rounded = np.rint(offered * 127).astype(np.int8)
    factors = (1 / np.linalg.norm(rounded.astype(np.float32), axis=1)).astype(np.float32)
    found = max_sim(asked, rounded.astype(np.float32), ends, how, factors=factors)
    wanted = max_sim(asked, rounded * factors[:, None], ends, how)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=SAME)
    exact = max_sim(asked, offered, ends, how)
    assert np.abs(found - exact).max() < 20 * 0.02  # 8 bits of a cosine


def test_a_request_without_weight_scores_0_and_a_skill_without_rows_least() -> None:
    how = Interaction(4, 20.0)
    skill, ends = behind_each_other([np.eye(DIM, dtype=np.float32), np.zeros((2, DIM), np.float32)])
    assert max_sim(np.zeros((6, DIM), np.float32), skill, ends, how).tolist() == [0, 0]
    np.testing.assert_allclose(max_sim(2 * np.eye(DIM, dtype=np.float32), skill, ends, how), [20, -20], atol=SAME)


def test_unit_rows_leave_out_what_weighs_nothing_and_keep_what_is_no_number() -> None:
    """One token that overflowed shall not give an ordinary score."""
    rows = np.array([[3, 4], [0, 0], [0, 0.5], [np.nan, 1]], np.float32)
    np.testing.assert_allclose(unit_rows(rows), [[0.6, 0.8], [0, 1], [np.nan, np.nan]], rtol=1e-6)
    assert unit_rows(rows[1:2]).shape == (0, 2)
    offered = unit_rows(rows)
    assert np.isnan(max_sim(rows[:1], offered, np.array([len(offered)]), Interaction(3, 1.0))).all()


@pytest.fixture(scope="module")
def tokens(tiny_reranker: Path) -> RerankerTokens:
    """What a reranker by late interaction reads, 48 tokens in all."""
    card = read_card(tiny_reranker).model_copy(update={"frame": BERT_LATE_FRAME, "score_kind": "max_sim"})
    return RerankerTokens(card, Tokenizer.from_file(str(tiny_reranker / "tokenizer.json")))


@pytest.mark.parametrize("query", ["find the sql log", "[CLS] find [SEP] [CLS]", "[SEP]", "", "\ud800 x"])
@pytest.mark.parametrize("body", ["deploy the plan", "x [CLS] y [SEP]", "[CLS]"])
def test_texts_alone_are_the_two_sides_of_a_pair_that_nothing_cuts(
    tokens: RerankerTokens, query: str, body: str
) -> None:
    """Whatever stands in them: each opens once, with its own first token."""
    request, [skill] = tokens.query(query).ids, tokens.skills([Skill(id="1", name="a", body=body)])
    pair = tokens.pair(request, skill)
    assert len(pair) == len(request) + len(skill) + 4
    alone = tokens.request_alone(request), tokens.skill_alone(skill, tokens.room)
    for found, side, text in zip(alone, sides(pair), (request, skill), strict=True):
        assert found.tolist() == side.tolist() == [OPENING, *text, SEPARATOR]
        assert (found == OPENING).sum() == 1


def test_a_skill_alone_is_read_as_far_as_its_limit(tokens: RerankerTokens) -> None:
    [skill] = tokens.skills([Skill(id="1", name="a", body="plan " * 99)])
    for limit in (1, 7, len(skill), len(skill) + 5):
        assert tokens.skill_alone(skill, limit).tolist() == [OPENING, *skill[:limit].tolist(), SEPARATOR]


def test_a_skill_alone_is_read_further_than_beside_a_request(tokens: RerankerTokens) -> None:
    request, [skill] = tokens.query("find the log").ids, tokens.skills([Skill(id="1", name="a", body="plan " * 99)])
    _, beside = sides(tokens.pair(request, skill))
    alone = tokens.skill_alone(skill, tokens.room)
    assert len(alone) == tokens.room + 2 == len(beside) + len(request)
    assert alone[: len(beside) - 1].tolist() == beside[:-1].tolist()


@pytest.mark.parametrize(
    ("role", "trained"), [("embedder", "embedder"), ("reranker", "reranker"), ("token_embedder", "reranker")]
)
def test_a_served_model_has_the_weights_that_were_trained_for_it(role: Role, trained: str) -> None:
    assert weights_role(role) == trained


def test_a_probe_compares_a_row_a_token() -> None:
    rows = np.arange(20, dtype=np.float32).reshape(1, 5, 4)
    probe = Probe(
        model="skill_token_embedder",
        output="token_embedding",
        input_ids=(2, 7, 2, 8, 3),
        seq_lens=(2, 3),
        expected=tuple(tuple(float(number) for number in row[:3]) for row in rows[0]),
        tolerance=1e-3,
    )
    assert probe.differs_by(rows) == probe.differs_by(rows[0]) == 0
    moved = rows.copy()
    moved[0, 4, 2] += 0.5
    assert probe.differs_by(moved) == 0.5
    moved[0, 4, 2] = np.nan
    assert probe.differs_by(moved) == np.inf
