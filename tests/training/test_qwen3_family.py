"""Qwen3 against straightforward code: one sequence at a time, no padding, all logits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from skillserve.card import read_card
from skillserve.errors import CardError, ConfigError
from skillserve.records import Skill
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids, Role
from skillserve.text import QWEN3_QUERY_PROMPT
from skillserve_training import draft_card, resolve_base, write_stock
from skillserve_training.families import family_of
from skillserve_training.forward import autocast, embed, embed_all, score, score_all
from skillserve_training.limits import prepare
from skillserve_training.weights import (
    embedder_tokens,
    open_embedder,
    open_reranker,
    reranker_tokens,
    score_tokens,
    write_trained,
)

SAME_ROW = 2e-6
"""Float32 sums in another order, on unit rows."""
SAME_GAP = 2e-5
"""The same on logits of size 1 to 10, one of which is a difference of two."""
ROUNDED_GAP = 0.1
"""Weights in bfloat16 have 8 significant bits; two layers of them move a gap of 1 by less than this."""

Make = Callable[..., Path]
SKILLS = [
    Skill(id="a", name="sql", description="Tunes queries.", body="# Steps\n1. EXPLAIN\n2. Add an index.\n"),
    Skill(id="b", name="naïve", description="中文", body="x" * 300),
    Skill(id="c", name="short"),
]
END = "<|endoftext|>"
QUERIES = ["make the report fast.", "¿por qué?", "a"]


def sequences(draw_seed: int = 0) -> list[Ids]:
    draw = np.random.default_rng(draw_seed)
    return [draw.integers(0, 1000, length).astype(np.int32) for length in (3, 60, 1, 17, 8)]


def pairs(folder: Path, max_tokens: int = 400) -> list[Ids]:
    tokens = reranker_tokens(folder, draft_card(resolve_base(str(folder)), "reranker", max_tokens=max_tokens))
    sides = tokens.skills(SKILLS)
    return [tokens.pair(cut.ids, side) for cut in tokens.queries(QUERIES) for side in sides]


def reference_gaps(folder: Path, texts: Sequence[Ids]) -> torch.Tensor:
    """As Qwen3-Reranker's model card computes it, with the difference instead of the softmax."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    gaps = []
    for text in texts:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(text[None]).long()).logits[0, -1]
        answers = torch.log_softmax(torch.stack([logits[no], logits[yes]]), dim=0)
        gaps.append(answers[1] - answers[0])
    return torch.stack(gaps)


def reference_rows(folder: Path, texts: Sequence[Ids]) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    rows = []
    for text in texts:
        with torch.no_grad():
            last = model(input_ids=torch.from_numpy(text[None]).long()).last_hidden_state[0, -1]
        rows.append(last / last.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["model", "lm"])
def test_an_embedding_is_the_last_tokens_whatever_its_neighbours(make_qwen3: Make, kind: str) -> None:
    """A language model's decoder embeds too: its head is left out."""
    folder = make_qwen3(kind)
    model, card = open_embedder(folder), draft_card(resolve_base(str(folder)), "embedder", max_tokens=128)
    together = embed_all(model, sequences(), card, "float32")
    assert together.dtype == torch.float32
    assert torch.allclose(together, reference_rows(folder, sequences()), atol=SAME_ROW)


@pytest.mark.parametrize("tied", [True, False])
def test_a_score_is_the_gap_of_the_full_logits_whatever_its_neighbours(make_qwen3: Make, tied: bool) -> None:  # noqa: FBT001
    folder = make_qwen3(tie_word_embeddings=tied)
    model = open_reranker(folder)
    together = score_all(model, pairs(folder), score_tokens(folder), "float32")
    wanted = reference_gaps(folder, pairs(folder))
    assert together.dtype == torch.float32
    assert torch.allclose(together, wanted, atol=SAME_GAP)
    assert wanted.std() > 100 * SAME_GAP


def test_a_gap_stays_float32_in_a_half_precision_run(make_qwen3: Make) -> None:
    """In bfloat16 gaps around 5 would be multiples of 1/32, and candidates would tie."""
    folder = make_qwen3()
    model, tokens = open_reranker(folder), score_tokens(folder)
    with torch.no_grad(), autocast("bfloat16", model.device):
        gaps = score(model, pairs(folder), tokens)
    assert gaps.dtype == torch.float32
    assert not torch.equal(gaps, gaps.bfloat16().float())


def test_gradients_reach_every_layer_of_both_models(make_qwen3: Make) -> None:
    folder = make_qwen3()
    card = draft_card(resolve_base(str(folder)), "embedder", max_tokens=128)
    for model, run in (
        (open_embedder(folder), lambda model: embed(model, sequences(), card)[:, 0].sum()),
        (open_reranker(folder), lambda model: score(model, pairs(folder), score_tokens(folder)).sum()),
    ):
        run(model).backward()
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_are_word_tables_and_the_lowest_layers(make_qwen3: Make, tied: bool) -> None:  # noqa: FBT001
    model = open_reranker(make_qwen3(tie_word_embeddings=tied))
    prepare(model, TrainSettings(frozen_layers=1, freeze_embeddings=True))
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in learning)


def test_no_head_of_a_language_model_is_new(make_qwen3: Make) -> None:
    model = open_reranker(make_qwen3(tie_word_embeddings=False), new_head=True)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    family_of(model).start_head(model, (1, 2), [], TrainSettings())
    assert family_of(model).head(model) == ()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_written_model_answers_as_before_and_keeps_its_bases_precision(
    make_qwen3: Make,
    tied: bool,  # noqa: FBT001
    dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    folder = make_qwen3(tie_word_embeddings=tied, dtype=dtype)
    base, model = resolve_base(str(folder)), open_reranker(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(0.01)
    card = draft_card(base, "reranker", max_tokens=256)
    assert write_trained(tmp_path / "out", model, base, card) == read_card(tmp_path / "out", verify_weights=True)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {dtype}
    assert ("lm_head.weight" in weights) is not tied
    opened, tokens = open_reranker(tmp_path / "out"), score_tokens(tmp_path / "out")
    gaps = score_all(opened, pairs(folder), tokens, "float32")
    same = SAME_GAP if dtype is torch.float32 else ROUNDED_GAP
    assert torch.allclose(gaps, score_all(model, pairs(folder), tokens, "float32"), atol=same)
    assert torch.allclose(gaps, reference_gaps(tmp_path / "out", pairs(folder)), atol=SAME_GAP)


def test_a_half_precision_base_is_written_in_full(make_qwen3: Make, tmp_path: Path) -> None:
    """Trained weights may leave float16's range."""
    folder = make_qwen3("model", dtype=torch.float16)
    base = resolve_base(str(folder))
    write_trained(tmp_path / "out", open_embedder(folder), base, draft_card(base, "embedder", max_tokens=128))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["dtype"] == "float32"


def test_the_precision_of_what_is_written_can_be_chosen(make_qwen3: Make, tmp_path: Path) -> None:
    folder = make_qwen3("model")
    base = resolve_base(str(folder))
    card = draft_card(base, "embedder", max_tokens=128)
    write_trained(tmp_path / "out", open_embedder(folder), base, card, dtype="bfloat16")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    embed_all(open_embedder(tmp_path / "out"), sequences(), card, "float32")


def test_a_card_carries_skillrets_prompt_and_frame(make_qwen3: Make, tmp_path: Path) -> None:
    """Whatever prompt the base states: the recipe was measured with this one."""
    folder = Path(shutil.copytree(make_qwen3("model"), tmp_path / "base"))
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "Other:", "document": "x"}}')
    card = draft_card(resolve_base(str(folder)), "embedder", max_tokens=128)
    assert (card.family, card.pooling, card.dim, card.vocab_size) == ("qwen3", "last", 64, 1100)
    assert (card.query_prompt, card.document_prompt) == (QWEN3_QUERY_PROMPT, "")
    tokens = embedder_tokens(folder, card)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    text = "Instruct: Given a skill search query, retrieve relevant skills that match the query\nQuery: fast sql?"
    assert tokenizer.decode(tokens.query(" fast sql?\n").ids) == text + END
    assert tokenizer.decode(tokens.skills([SKILLS[2]])[0]) == f"short |  | {END}"


def test_a_trained_cards_prompt_wins_over_the_recipe(make_qwen3: Make, tmp_path: Path) -> None:
    base = resolve_base(str(make_qwen3("model")))
    card = draft_card(base, "embedder", max_tokens=128).model_copy(update={"query_prompt": "Q: "})
    write_stock(tmp_path / "mine", base, card)
    mine = resolve_base(str(tmp_path / "mine"))
    assert draft_card(mine, "embedder", max_tokens=128).query_prompt == "Q: "


@pytest.mark.parametrize("token", ["yes", "no", END, "<think>"])
def test_a_tokenizer_without_the_frames_or_the_answers_tokens_is_refused(
    make_qwen3: Make, token: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make_qwen3(), tmp_path / "base"))
    content = json.loads((folder / "tokenizer.json").read_bytes())
    content["added_tokens"] = [added for added in content["added_tokens"] if added["content"] != token]
    content["model"]["merges"] = [merge for merge in content["model"]["merges"] if "".join(merge) != token]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    role: Role = "embedder" if token == END else "reranker"
    with pytest.raises(CardError, match=rf"\d tokens for {re.escape(token)};"):
        draft_card(resolve_base(str(folder)), role, max_tokens=256)


def test_an_embedding_model_with_untied_words_cannot_answer(make_qwen3: Make) -> None:
    with pytest.raises(ConfigError, match=r"lm_head\.weight"):
        open_reranker(make_qwen3("model", tie_word_embeddings=False), new_head=True)
    open_reranker(make_qwen3("model"), new_head=True)
