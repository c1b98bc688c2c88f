"""Ids, masks, types and losses, against expectations worked out by hand or by naive loops."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from skillserve.card import ModelCard, read_card
from skillserve.config import TrainSettings
from skillserve_training import draft_card, read_training_data, resolve_base
from skillserve_training.embedder import TokenisedPairs, ranking_loss, tokenise_pairs
from skillserve_training.families.bert import pair_types
from skillserve_training.forward import embed_all, pad, score, score_all
from skillserve_training.recipe import recipe_for, training_limits
from skillserve_training.reranker import listwise_loss, mine_candidates
from skillserve_training.weights import embedder_tokens, open_embedder, open_reranker, reranker_tokens, score_tokens

SAME_ROW = 1e-5
"""Float32 sums in another order, on entries of size 1."""


def _vocabulary(tokenizer: Path) -> dict[str, int]:
    import json

    return dict(json.loads(tokenizer.read_text())["model"]["vocab"])


def _card(folder: Path, **update: object) -> ModelCard:
    return read_card(folder).model_copy(update=update)


def test_a_separator_in_a_text_is_only_letters(tiny_embedder: Path, tiny_tokenizer: Path, tiny_data: Path) -> None:
    """The expectation is spelled out by hand: WordPiece splits a word that it does not know into its letters."""
    ids = _vocabulary(tiny_tokenizer)
    path = tiny_data / "queries" / "train.jsonl"
    path.write_text(path.read_text().replace('"the sql test"', '"the [SEP] test"').replace('"the query sql"', '"x"'))
    data = read_training_data(tiny_data)
    pairs = tokenise_pairs(data, embedder_tokens(tiny_embedder, _card(tiny_embedder)))
    row = next(i for i, query in enumerate(data.queries) if "[SEP]" in query.text)
    wanted = ["[CLS]", "the", "[", "s", "##e", "##p", "]", "test", "[SEP]"]
    assert pairs.requests[row].tolist() == [ids[piece] for piece in wanted]
    skill = pairs.skills[next(iter(pairs.golds[row]))]
    wanted = ["[CLS]", "sql", "test", "|", "find", "the", "sql", "|", "sql", "and", "test", "[SEP]"]
    assert skill.tolist() == [ids[piece] for piece in wanted]


def test_training_only_cuts_texts_shorter(tiny_embedder: Path, tiny_data: Path) -> None:
    data = read_training_data(tiny_data)
    card = draft_card(resolve_base(str(tiny_embedder)), "embedder", max_tokens=48)
    recipe = recipe_for("embedder", TrainSettings(train_tokens=8, max_tokens=48), num_layers=2)
    served = tokenise_pairs(data, embedder_tokens(tiny_embedder, card))
    trained = tokenise_pairs(data, embedder_tokens(tiny_embedder, training_limits(card, recipe)))
    for long, short in zip(served.skills, trained.skills, strict=True):
        assert short.tolist() == [*long[:7].tolist(), long[-1]]


def test_a_pair_is_cut_on_the_skill_side_only(tiny_reranker: Path, tiny_tokenizer: Path, tiny_data: Path) -> None:
    ids = _vocabulary(tiny_tokenizer)
    data = read_training_data(tiny_data)
    run = {query.id: {skill.id: 0.0 for skill in data.skills} for query in data.queries}
    tokens = reranker_tokens(tiny_reranker, _card(tiny_reranker, max_tokens=10))
    candidates = mine_candidates(data, run, tokens)
    row = next(i for i, query in enumerate(data.queries) if query.text == "the sql test")
    pair = tokens.pair(candidates.requests[row], candidates.skills[next(iter(candidates.golds[row]))])
    wanted = ["[CLS]", "the", "sql", "test", "[SEP]", "sql", "test", "|", "find", "[SEP]"]
    assert pair.tolist() == [ids[piece] for piece in wanted]


def test_types_change_behind_the_first_separator() -> None:
    ids = torch.tensor([[2, 7, 3, 8, 9, 3, 0, 0], [2, 3, 8, 8, 8, 8, 8, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0], [1] * 8])
    assert pair_types(ids, mask, separator=3).tolist() == [[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_embedding_does_not_depend_on_its_neighbours(tiny_embedder: Path, pooling: str) -> None:
    model, card = open_embedder(tiny_embedder), _card(tiny_embedder, pooling=pooling)
    draw = np.random.default_rng(0)
    sequences = [draw.integers(5, 40, length).astype(np.int32) for length in (3, 31, 1, 17, 8)]
    together = embed_all(model, sequences, card, "float32")
    for row, sequence in zip(together, sequences, strict=True):
        with torch.no_grad():
            hidden = model(input_ids=torch.from_numpy(sequence[None]).long()).last_hidden_state[0]
            alone = hidden.mean(0) if pooling == "mean" else hidden[0]
        assert torch.allclose(row, alone / alone.norm(), atol=SAME_ROW)


def test_a_score_does_not_depend_on_its_neighbours(tiny_reranker: Path) -> None:
    model, tokens = open_reranker(tiny_reranker), score_tokens(tiny_reranker)
    (separator,) = tokens
    draw = np.random.default_rng(0)
    pairs = [
        np.concatenate([[2], draw.integers(5, 40, n), [separator], draw.integers(5, 40, m), [separator]]).astype(
            np.int32
        )
        for n, m in ((3, 12), (1, 1), (9, 30))
    ]
    together = score_all(model, pairs, tokens, "float32")
    with torch.no_grad():
        alone = torch.cat([score(model, [pair], tokens) for pair in pairs])
    assert torch.allclose(together, alone, atol=SAME_ROW)


def test_padding_is_masked() -> None:
    ids, mask = pad([np.array([5], np.int32), np.array([6, 7, 8], np.int32)], torch.device("cpu"))
    assert ids.tolist() == [[5, 0, 0], [6, 7, 8]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]


def test_the_ranking_loss_equals_a_naive_loop_that_skips_other_golds() -> None:
    draw = torch.Generator().manual_seed(3)
    requests, skills = (torch.nn.functional.normalize(torch.randn(n, 6, generator=draw), dim=-1) for n in (4, 5))
    golds = [{0, 1}, {1}, {2, 4}, {3}]
    pairs = [(0, 0), (0, 1), (1, 1), (2, 2), (3, 3)]
    gold = torch.tensor([[column in fitting for column in range(5)] for fitting in golds])
    got = ranking_loss(requests, skills, gold, torch.tensor(pairs)).item()

    scores = (20 * requests @ skills.T).tolist()
    total = 0.0
    for row, column in pairs:
        against = [scores[row][c] for c in range(5) if c == column or c not in golds[row]]
        total -= scores[row][column] - math.log(math.fsum(map(math.exp, against)))
        against = [scores[r][column] for r in range(4) if r == row or column not in golds[r]]
        total -= scores[row][column] - math.log(math.fsum(map(math.exp, against)))
    assert got == pytest.approx(total / 2 / len(pairs), rel=1e-5)


def test_a_batch_holds_every_text_once(tiny_embedder: Path, tiny_data: Path) -> None:
    pairs = tokenise_pairs(read_training_data(tiny_data), embedder_tokens(tiny_embedder, _card(tiny_embedder)))
    two_golds = next(i for i, golds in enumerate(pairs.golds) if len(golds) == 2)
    first, second = sorted(pairs.golds[two_golds])
    other = next(i for i, golds in enumerate(pairs.golds) if golds == {first})
    batch = pairs.batch([(two_golds, first), (two_golds, second), (other, first)])
    assert (len(batch.requests), len(batch.skills)) == (2, 2)
    rows = [batch.requests[row].tolist() for row in batch.pairs[:, 0]]
    assert rows == [pairs.requests[i].tolist() for i in (two_golds, two_golds, other)]
    assert batch.gold.sum().item() == 3


def test_a_pass_shows_every_pair_once_and_in_a_new_order() -> None:
    some = np.array([1], np.int32)
    pairs = TokenisedPairs([some] * 12, [some] * 12, [frozenset({i}) for i in range(12)])
    batches = pairs.batches(4, seed=0)
    passes = [[next(batches) for _ in range(3)] for _ in range(2)]
    assert all(sum(len(batch.pairs) for batch in one) == 12 for one in passes)


def test_negatives_are_never_golds_and_never_twice(tiny_reranker: Path, tiny_data: Path) -> None:
    data = read_training_data(tiny_data)
    run = {query.id: {skill.id: hash(skill.id) % 97 for skill in data.skills} for query in data.queries}
    candidates = mine_candidates(data, run, reranker_tokens(tiny_reranker, _card(tiny_reranker)))
    draw = random.Random(1)
    for request, golds in enumerate(candidates.golds):
        assert golds.isdisjoint(candidates.hard[request])
        for count in (1, 5, 99):
            chosen = candidates.negatives(request, count, draw)
            assert golds.isdisjoint(chosen)
            assert len(set(chosen)) == len(chosen) == min(count, len(data.skills) - len(golds))


def test_the_listwise_loss_is_the_cross_entropy_of_the_first() -> None:
    lists = [torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0])]
    wanted = math.log(math.e + math.e**2 + 1) - 1
    assert listwise_loss(lists).item() == pytest.approx(wanted / 2)
