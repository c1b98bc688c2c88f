"""Ids, masks and types, against expectations worked out by hand or by naive loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from skillserve.card import ModelCard, read_card
from skillserve.settings import TrainSettings
from skillserve_training import draft_card, read_training_data, resolve_base
from skillserve_training.families.bert import pair_types
from skillserve_training.forward import embed_all, pad, score, score_all
from skillserve_training.limits import training_limits
from skillserve_training.lists import Listing, tokenise_sides
from skillserve_training.pairs import tokenise
from skillserve_training.weights import embedder_tokens, open_embedder, open_reranker, reranker_tokens, score_tokens

SAME_ROW = 1e-5
"""Float32 sums in another order, on entries of size 1."""


def _vocabulary(tokenizer: Path) -> dict[str, int]:
    return dict(json.loads(tokenizer.read_text())["model"]["vocab"])


def _card(folder: Path, **update: object) -> ModelCard:
    return read_card(folder).model_copy(update=update)


def test_a_separator_in_a_text_is_only_letters(tiny_embedder: Path, tiny_tokenizer: Path, tiny_data: Path) -> None:
    """The expectation is spelled out by hand: WordPiece splits a word that it does not know into its letters."""
    ids = _vocabulary(tiny_tokenizer)
    path = tiny_data / "queries" / "train.jsonl"
    path.write_text(path.read_text().replace('"the sql test"', '"the [SEP] test"').replace('"the query sql"', '"x"'))
    data = read_training_data(tiny_data)
    pairs = tokenise(data, embedder_tokens(tiny_embedder, _card(tiny_embedder)), TrainSettings())
    row = next(i for i, query in enumerate(data.queries) if "[SEP]" in query.text)
    wanted = ["[CLS]", "the", "[", "s", "##e", "##p", "]", "test", "[SEP]"]
    assert pairs.requests[row].tolist() == [ids[piece] for piece in wanted]
    skill = pairs.documents[next(iter(pairs.golds[row]))]
    wanted = ["[CLS]", "sql", "test", "|", "find", "the", "sql", "|", "sql", "and", "test", "[SEP]"]
    assert skill.tolist() == [ids[piece] for piece in wanted]


def test_training_only_cuts_texts_shorter(tiny_embedder: Path, tiny_data: Path) -> None:
    data = read_training_data(tiny_data)
    card = draft_card(resolve_base(str(tiny_embedder)), "embedder", max_tokens=48)
    settings = TrainSettings(train_tokens=8, max_tokens=48)
    served = tokenise(data, embedder_tokens(tiny_embedder, card), settings)
    trained = tokenise(data, embedder_tokens(tiny_embedder, training_limits(card, settings)), settings)
    for long, short in zip(served.documents, trained.documents, strict=True):
        assert short.tolist() == [*long[:7].tolist(), long[-1]]


def test_a_pair_is_cut_on_the_skill_side_only(tiny_reranker: Path, tiny_tokenizer: Path, tiny_data: Path) -> None:
    ids = _vocabulary(tiny_tokenizer)
    data = read_training_data(tiny_data)
    texts = tokenise_sides(data, reranker_tokens(tiny_reranker, _card(tiny_reranker, max_tokens=10)))
    row = next(i for i, query in enumerate(data.queries) if query.text == "the sql test")
    (pair,) = texts.pairs(Listing(row, (next(iter(texts.golds[row])),)))
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


def test_the_catalogue_gives_pairs_of_its_own(tiny_embedder: Path, tiny_tokenizer: Path, tiny_data: Path) -> None:
    """A description asks for the rest of its skill, a section of a body for name and description."""
    ids = _vocabulary(tiny_tokenizer)
    path = tiny_data / "skills" / "train.jsonl"
    body = "\n".join(f"# {word}\n" + " ".join([word] * 40) for word in ("sql", "test"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["body"] = body
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_training_data(tiny_data)
    settings = TrainSettings(catalogue_share=1.0, section_share=1.0)
    texts = tokenise(data, embedder_tokens(tiny_embedder, _card(tiny_embedder, max_tokens=12)), settings)
    assert (len(texts.described), len(texts.sections)) == (len(rows), 2)

    request, document = texts.described[1]
    words = ["find", "the", *rows[1]["description"].split()[2:]]
    assert texts.requests[request][1:-1].tolist() == [ids[word] for word in words]
    assert ids["find"] not in texts.documents[document].tolist()
    request, document = texts.sections[1]
    assert texts.requests[request].tolist().count(ids["test"]) == 9
    assert ids["find"] in texts.documents[document].tolist()
    for request, document in (*texts.described, *texts.sections):
        assert texts.golds[request] == {texts.skill_of[document]}
