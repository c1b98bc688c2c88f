"""Families are told apart by config.json alone, and each takes only what it can serve."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig, BertForSequenceClassification

from skillserve.card import read_card
from skillserve.cli import main
from skillserve.errors import CardError, ConfigError
from skillserve.publish import sha256_of
from skillserve.settings import TrainSettings
from skillserve_training import (
    draft_card,
    read_training_data,
    resolve_base,
    train_embedder,
    train_reranker,
)
from skillserve_training.families import family_in, family_of
from skillserve_training.forward import embed
from skillserve_training.weights import open_embedder, open_reranker

Make = Callable[..., Path]
OF_FAMILY = {"bert": "mean", "modernbert": "cls", "qwen3": "last", "xlm-roberta": "cls"}
"""The pooling of a base that states none; late interaction is what training makes, so nobody publishes a base of it."""


@pytest.fixture(params=sorted(OF_FAMILY))
def plain_base(request: pytest.FixtureRequest, make_base: Make) -> tuple[str, Path]:
    """A family, and an embedder of it as others publish one, without our card."""
    return request.param, make_base(request.param, "embedder")


def write_pooling(folder: Path, content: object) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))


def test_an_unknown_architecture_lists_the_known_ones(plain_base: tuple[str, Path]) -> None:
    _, folder = plain_base
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    for refused in (lambda: open_embedder(folder), lambda: open_reranker(folder), lambda: family_in(folder)):
        with pytest.raises(
            ConfigError, match="got model type gpt2; wanted one of bert, late-bert, modernbert, qwen3, xlm-roberta"
        ):
            refused()


def test_a_base_that_names_no_pooling_has_its_familys_usual_one(plain_base: tuple[str, Path]) -> None:
    family, folder = plain_base
    assert draft_card(resolve_base(str(folder)), "embedder", max_tokens=60).pooling == OF_FAMILY[family]


@pytest.mark.parametrize("written", ["booleans", "word"])
def test_pooling_is_read_in_both_ways_that_sentence_transformers_writes_it(
    plain_base: tuple[str, Path], written: str
) -> None:
    family, folder = plain_base
    flag, word = ("pooling_mode_cls_token", "cls")
    if family == "qwen3":
        flag, word = ("pooling_mode_lasttoken", "lasttoken")
    told = {flag: True, "pooling_mode_max_tokens": False} if written == "booleans" else {"pooling_mode": word}
    write_pooling(folder, told)
    wanted = "last" if family == "qwen3" else "cls"
    assert draft_card(resolve_base(str(folder)), "embedder", max_tokens=60).pooling == wanted


@pytest.mark.parametrize(
    "told",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True},
        {"pooling_mode": "weightedmean"},
        {"pooling_mode": ["mean", "cls"]},
        {"word_embedding_dimension": 32},
    ],
)
def test_a_pooling_that_serving_cannot_reproduce_is_refused(plain_base: tuple[str, Path], told: object) -> None:
    _, folder = plain_base
    write_pooling(folder, told)
    with pytest.raises(ConfigError, match="pooling of base"):
        draft_card(resolve_base(str(folder)), "embedder", max_tokens=60)


def test_a_pooling_of_another_family_is_refused(plain_base: tuple[str, Path]) -> None:
    """A decoder's first token has read nothing but itself, and an encoder's last one is a separator."""
    family, folder = plain_base
    card = draft_card(resolve_base(str(folder)), "embedder", max_tokens=60)
    wrong, word = ("mean", "mean") if family == "qwen3" else ("last", "lasttoken")
    other = card.model_copy(update={"pooling": wrong})
    with pytest.raises(CardError, match="skillserve card"):
        embed(open_embedder(folder), [np.array([1], np.int32)], other)
    write_pooling(folder, {"pooling_mode": word})
    with pytest.raises(ConfigError, match="pooling of base"):
        draft_card(resolve_base(str(folder)), "embedder", max_tokens=60)


def test_a_family_knows_its_layers_and_word_tables(plain_base: tuple[str, Path]) -> None:
    """Together with final norms and heads they are the whole model, each weight once."""
    _, folder = plain_base
    family, embedder, reranker = family_in(folder), open_embedder(folder), open_reranker(folder, new_head=True)
    for model, head in ((embedder, ()), (reranker, family.head(reranker))):
        assert family_of(model) is family
        parts = [*family.embeddings(model), *family.layers(model), *head]
        known = {id(weight) for part in parts for weight in part.parameters()}
        rest = {name for name, weight in model.named_parameters() if id(weight) not in known}
        assert len(family.layers(model)) == model.config.num_hidden_layers
        assert {name.removeprefix("model.") for name in rest} <= {
            "norm.weight",
            "final_norm.weight",
            "pooler.dense.weight",
            "pooler.dense.bias",
        }


def test_a_classifier_with_two_labels_is_no_reranker(tiny_reranker: Path, tmp_path: Path) -> None:
    config = BertConfig.from_pretrained(tiny_reranker)
    config.num_labels = 2
    BertForSequenceClassification(config).save_pretrained(tmp_path / "two")
    shutil.copyfile(tiny_reranker / "tokenizer.json", tmp_path / "two" / "tokenizer.json")
    with pytest.raises(ConfigError, match="a classifier with 2 labels"):
        open_reranker(tmp_path / "two")


@pytest.mark.parametrize("role", ["embedder", "reranker"])
@pytest.mark.parametrize("family", sorted(OF_FAMILY))
def test_the_card_command_takes_every_family(
    family: str, role: str, make_base: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = make_base(family, role), tmp_path / "out"
    limit = "400" if family == "qwen3" else "60"
    command = ["card", "--base", str(folder), "--role", role, "--max-tokens", limit, "--out", str(out), "--json"]
    assert main(command) == 0
    card = read_card(out, verify_weights=True)
    assert json.loads(capsys.readouterr().out)["card"] == card.model_dump()
    kind = "cosine" if role == "embedder" else "yes_no" if family == "qwen3" else "logit"
    pooling = OF_FAMILY[family] if role == "embedder" else None
    assert (card.family, card.role, card.pooling, card.score_kind) == (family, role, pooling, kind)
    assert sha256_of(out / "model.safetensors") == sha256_of(folder / "model.safetensors")
    (open_embedder if role == "embedder" else open_reranker)(out)


def test_a_base_without_a_known_family_is_a_usage_error(
    plain_base: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = plain_base
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    assert main(["card", "--base", str(folder), "--out", str(tmp_path / "out"), "--json"]) == 2
    assert "bert, modernbert" in json.loads(capsys.readouterr().out)["wanted"]
    assert not (tmp_path / "out").exists()


def test_training_runs_for_qwen3_as_for_bert(
    make_qwen3: Make, tiny_data: Path, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    """From an embedding model to an embedder, and from a language model to a reranker that is chosen with it."""
    data = read_training_data(tiny_data)
    settings = tiny_settings.model_copy(
        update={"max_tokens": 320, "max_query_tokens": 100, "train_tokens": 320, "learning_rate": 5e-4, "epochs": 2.0}
    )
    embedder = train_embedder(data, resolve_base(str(make_qwen3("model"))), settings, tmp_path / "embedder")
    reranker = train_reranker(
        data, resolve_base(str(make_qwen3())), resolve_base(str(tmp_path / "embedder")), settings, tmp_path / "reranker"
    )
    for card in (embedder, reranker):
        assert card == read_card(tmp_path / card.role, verify_weights=True)
        assert card.training["final_loss"] < card.training["first_loss"]
