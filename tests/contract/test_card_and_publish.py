"""Cards are bound to their weights; what is published is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from skillserve.card import ModelCard, compute_digest, read_card, write_card
from skillserve.errors import CardError
from skillserve.publish import published_folder, write_text
from skillserve.text import BERT_PAIR_FRAME


@pytest.fixture
def weights(tiny_embedder: Path, tmp_path: Path) -> Path:
    """A private copy of a weights folder."""
    for path in tiny_embedder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_card_survives_the_round_trip(weights: Path) -> None:
    card = read_card(weights, verify_weights=True)
    assert write_card(weights, card) == card
    assert read_card(weights) == card


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_changed_file_changes_the_digest(weights: Path, name: str) -> None:
    with (weights / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(CardError, match="skillserve card"):
        read_card(weights, verify_weights=True)


def test_a_changed_prompt_changes_the_digest(weights: Path) -> None:
    card = read_card(weights)
    assert compute_digest(weights, card.model_copy(update={"query_prompt": "Query: "})) != card.digest


def test_a_missing_file_is_named(weights: Path) -> None:
    (weights / "tokenizer.json").unlink()
    with pytest.raises(CardError, match=r"no tokenizer\.json"):
        read_card(weights, verify_weights=True)


@pytest.mark.parametrize(
    "change",
    [
        {"frame": BERT_PAIR_FRAME},
        {"dim": None},
        {"pooling": None},
        {"score_kind": "logit"},
        {"max_query_tokens": 10_000},
        {"vocab_size": 0},
        {"colour": "blue"},
        {"text_format": "other/9"},
    ],
)
def test_a_card_that_contradicts_itself_is_refused(weights: Path, change: dict[str, object]) -> None:
    content = json.loads((weights / "card.json").read_text()) | change
    (weights / "card.json").write_text(json.dumps(content))
    with pytest.raises(CardError, match=r"card\.json"):
        read_card(weights)


def test_a_card_is_frozen(weights: Path) -> None:
    with pytest.raises(ValidationError):
        read_card(weights).dim = 5


def test_no_card_is_said(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="skillserve card"):
        read_card(tmp_path)


def test_a_reranker_has_no_dim(tiny_reranker: Path) -> None:
    card = read_card(tiny_reranker)
    assert isinstance(card, ModelCard)
    assert card.dim is None


def test_a_failed_block_leaves_the_old_folder(tmp_path: Path) -> None:
    """And no draft beside it."""
    target = tmp_path / "folder"
    with published_folder(target) as draft:
        (draft / "a").write_text("old")

    def fail() -> None:
        with published_folder(target) as draft:
            (draft / "a").write_text("new")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_published_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("a", "b"):
        with published_folder(target) as draft:
            (draft / name).write_text(name)
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "one")
    write_text(tmp_path / "x", "two")
    assert (tmp_path / "x").read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 1
