"""Late interaction against loops over single tokens, each side of a pair read alone by transformers' own BERT."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertModel

from skillserve.card import read_card
from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids
from skillserve_training import draft_card, forward, read_training_data, resolve_base, train_embedder, train_reranker
from skillserve_training.families import family_in, family_of
from skillserve_training.families.late import LateBertModel, best_stretch, rarity
from skillserve_training.forward import score_all
from skillserve_training.weights import open_reranker, reranker_tokens, score_tokens

SAME_SCORE = 2e-5
"""Float32 sums in another order, times the scale of 20."""


def best_of_stretches(nearest: list[float], weights: list[float], window: int) -> float:
    """Every stretch summed on its own."""
    size = min(window, len(nearest))
    means = []
    for start in range(len(nearest) - size + 1):
        stretch = range(start, start + size)
        weight = math.fsum(weights[i] for i in stretch)
        means.append(math.fsum(weights[i] * nearest[i] for i in stretch) / weight if weight else 0.0)
    return max(means)


@given(
    rows=st.lists(
        st.lists(st.tuples(st.floats(-1, 1, width=32), st.sampled_from([0.0, 0.5, 1.0, 7.0])), min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    ),
    window=st.integers(1, 14),
)
def test_the_best_stretch_is_the_best_of_all(rows: list[list[tuple[float, float]]], window: int) -> None:
    longest = max(len(row) for row in rows)
    nearest = torch.full((len(rows), longest), -1.0)
    weights = torch.zeros(len(rows), longest)
    for i, row in enumerate(rows):
        nearest[i, : len(row)] = torch.tensor([near for near, _ in row])
        weights[i, : len(row)] = torch.tensor([weight for _, weight in row])
    lens = torch.tensor([len(row) for row in rows])
    found = best_stretch(nearest, weights, lens, window).tolist()
    wanted = [best_of_stretches([n for n, _ in row], [w for _, w in row], window) for row in rows]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_tokens_of_many_skills_weigh_little_and_marks_nothing() -> None:
    weights = rarity([np.array(skill, np.int32) for skill in ([5, 6, 6], [5, 7], [5, 8])], 10, marks=(1, 2))
    assert weights[1] == weights[2] == 0
    assert weights[5] < weights[6] == weights[7] == weights[8] < weights[9]
    assert weights[6] == pytest.approx(math.log(4 / 1.5))
    assert weights[9] == pytest.approx(math.log(4 / 0.5))


@pytest.fixture
def late(tiny_embedder: Path) -> LateBertModel:
    """Made of an embedder, with random weights of tokens."""
    model = open_reranker(tiny_embedder, new_head=True, late=True)
    tokens = score_tokens(tiny_embedder, late=True)
    draw = np.random.default_rng(0)
    skills = [draw.integers(0, 100, 30).astype(np.int32) for _ in range(20)]
    family_of(model).start_head(model, tokens, skills, TrainSettings(window=6, scale=10))
    assert isinstance(model, LateBertModel)
    return model


def pairs_of(folder: Path, num: int) -> list[Ids]:
    """Framed pairs, some with one request, of different lengths."""
    draw = np.random.default_rng(1)
    opening, separator = score_tokens(folder, late=True)
    words = np.setdiff1d(np.arange(100), (opening, separator))
    requests = [draw.choice(words, length) for length in (3, 17, 9)]
    mark = np.array([opening]), np.array([separator])
    return [
        np.concatenate(
            [mark[0], requests[i % 3], mark[1], mark[0], draw.choice(words, 1 + int(draw.integers(20))), mark[1]]
        ).astype(np.int32)
        for i in range(num)
    ]


def test_a_score_is_that_of_sides_read_alone(late: LateBertModel, tiny_embedder: Path) -> None:
    opening, separator = tokens = score_tokens(tiny_embedder, late=True)
    pairs = pairs_of(tiny_embedder, 7)
    plain = BertModel.from_pretrained(tiny_embedder, dtype=torch.float32, attn_implementation="eager").eval()
    wanted = []
    for pair in pairs:
        split = int(np.flatnonzero(pair == opening)[1])
        sides = []
        for side in (pair[:split], pair[split:]):
            with torch.no_grad():
                states = plain(input_ids=torch.from_numpy(side[None]).long()).last_hidden_state[0].double().numpy()
            sides.append((side, states / np.linalg.norm(states, axis=1, keepdims=True)))
        (request, of_request), (skill, of_skill) = sides
        words = [k for k in range(len(skill)) if skill[k] not in (opening, separator)]
        nearest = [max(float(state @ of_skill[k]) for k in words) for state in of_request]
        weights = [0.0 if i in (opening, separator) else float(late.token_weights[i]) for i in request]
        wanted.append(10 * best_of_stretches(nearest, weights, 6))
    assert score_all(late, pairs, tokens, "float32").tolist() == pytest.approx(wanted, abs=SAME_SCORE)


def test_equal_requests_are_read_once(late: LateBertModel, tiny_embedder: Path) -> None:
    rows = []
    late.bert.register_forward_pre_hook(lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True)
    score_all(late, pairs_of(tiny_embedder, 6), score_tokens(tiny_embedder, late=True), "float32")
    assert rows == [3, 6]


def test_a_pass_holds_the_skills_of_few_requests(
    late: LateBertModel, tiny_embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three requests, asked for in turns: in passes of a few pairs, only two see a second request."""
    pairs, tokens = pairs_of(tiny_embedder, 60), score_tokens(tiny_embedder, late=True)
    whole = score_all(late, pairs, tokens, "float32")
    rows = []
    late.bert.register_forward_pre_hook(lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True)
    monkeypatch.setitem(forward._GROUP_TOKENS, "cpu", 150)
    torch.testing.assert_close(score_all(late, pairs, tokens, "float32"), whole, atol=SAME_SCORE, rtol=0)
    requests = rows[::2]
    assert len(requests) > 9
    assert sum(requests) <= len(requests) + 2


def test_what_was_read_is_remembered_within_a_block_and_forgotten_behind_it(
    late: LateBertModel, tiny_embedder: Path
) -> None:
    pairs, tokens = pairs_of(tiny_embedder, 12), score_tokens(tiny_embedder, late=True)
    whole = score_all(late, pairs, tokens, "float32")
    rows = []
    late.bert.register_forward_pre_hook(lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True)
    with family_of(late).remembering(late):
        for part in (pairs[:6], pairs, pairs):
            found = score_all(late, part, tokens, "float32")
            torch.testing.assert_close(found, whole[: len(part)], atol=SAME_SCORE, rtol=0)
        assert rows == [3, 6, 6]
        assert late.remembered is not None
        late.remembered.most_bytes = 0
        score_all(late, pairs, tokens, "float32")
        assert rows[3:] == [3, 12]
    score_all(late, pairs, tokens, "float32")
    assert rows[5:] == [3, 12]


def test_a_run_begins_at_the_embedder_and_its_weights_come_back(
    tiny_embedder: Path, tiny_data: Path, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    """Trained, written, opened again: the same scores; and a run that goes on keeps the weights of tokens."""
    data, base = read_training_data(tiny_data), resolve_base(str(tiny_embedder))
    train_embedder(data, base, tiny_settings, tmp_path / "embedder")
    first = resolve_base(str(tmp_path / "embedder"))
    settings = tiny_settings.model_copy(update={"interaction": "late", "window": 5, "similarity_weight": 10.0})
    written = train_reranker(data, first, first, settings, tmp_path / "late")
    assert written == read_card(tmp_path / "late", verify_weights=True)
    assert (written.family, written.score_kind) == ("late-bert", "max_sim")
    assert written.training["final_loss"] < written.training["first_loss"]

    model, tokens = open_reranker(tmp_path / "late"), score_tokens(tmp_path / "late")
    assert model.config.window == 5
    framing = reranker_tokens(tmp_path / "late", written)
    (side,) = framing.skills(data.skills[:1])
    pair = framing.pair(framing.query("the sql query").ids, side)
    assert [int(i) for i in pair].count(tokens[0]) == 2
    assert torch.isfinite(score_all(model, [pair], tokens, "float32")).all()

    train_reranker(data, resolve_base(str(tmp_path / "late")), first, settings, tmp_path / "again")
    again = open_reranker(tmp_path / "again")
    assert torch.equal(again.token_weights, model.token_weights)


def test_late_interaction_is_for_rerankers_of_known_families(tiny_embedder: Path, tmp_path: Path) -> None:
    base = resolve_base(str(tiny_embedder))
    assert draft_card(base, "reranker", max_tokens=48, late=True).score_kind == "max_sim"
    assert not family_in(tiny_embedder, late=True).has_head(tiny_embedder)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ConfigError, match="late-bert"):
        family_in(tmp_path, late=True)
