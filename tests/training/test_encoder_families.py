"""XLM-RoBERTa and ModernBERT against transformers' own classes, one sequence at a time, without padding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from skillserve.card import Pooling, read_card
from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids
from skillserve_training import draft_card, read_training_data, resolve_base, train_embedder, train_reranker
from skillserve_training.families import family_in
from skillserve_training.forward import embed, embed_all, score, score_all
from skillserve_training.weights import open_embedder, open_reranker, score_tokens

Make = Callable[..., Path]
SAME_ROW = 2e-6
"""Float32 sums in another order, on unit rows."""
SAME_SCORE = 1e-5
"""The same on logits of size 1 to 10."""


@pytest.fixture(params=["modernbert", "xlm-roberta"])
def family(request: pytest.FixtureRequest) -> str:
    """The families of this file."""
    return str(request.param)


def sequences() -> list[Ids]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 200, length).astype(np.int32) for length in (3, 60, 1, 17, 8)]


def each_alone(kind: type, folder: Path) -> list[torch.Tensor]:
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return [model(input_ids=torch.from_numpy(ids[None]).long())[0][0] for ids in sequences()]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_embedding_is_the_models_own_whatever_its_neighbours(family: str, pooling: Pooling, make_base: Make) -> None:
    folder = make_base(family, "embedder")
    card = draft_card(resolve_base(str(folder)), "embedder", max_tokens=60).model_copy(update={"pooling": pooling})
    together = embed_all(open_embedder(folder), sequences(), card, "float32")
    states = each_alone(AutoModel, folder)
    alone = torch.stack([state[0] if pooling == "cls" else state.mean(0) for state in states])
    assert torch.allclose(together, torch.nn.functional.normalize(alone, dim=-1), atol=SAME_ROW)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_score_is_the_models_own_whatever_its_neighbours(family: str, pooling: str, make_base: Make) -> None:
    """Of ModernBERT also where its head reads the mean."""
    folder = make_base(family, "reranker", **({"classifier_pooling": pooling} if family == "modernbert" else {}))
    together = score_all(open_reranker(folder), sequences(), score_tokens(folder), "float32")
    alone = torch.stack([logits[0] for logits in each_alone(AutoModelForSequenceClassification, folder)])
    assert together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=SAME_SCORE)
    assert alone.std() > 100 * SAME_SCORE


def test_gradients_reach_every_layer_of_both_models(family: str, make_base: Make) -> None:
    folder = make_base(family, "reranker")
    card = draft_card(resolve_base(str(folder)), "embedder", max_tokens=60)
    embedder, reranker = open_embedder(folder), open_reranker(folder)
    embed(embedder, sequences(), card)[:, 0].sum().backward()
    score(reranker, sequences(), ()).sum().backward()
    for model in (embedder, reranker):
        learning = [weight for weight in model.parameters() if weight.requires_grad]
        assert learning
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in learning)


def test_a_head_that_is_missing_is_made_only_if_asked_for(family: str, make_base: Make) -> None:
    folder = make_base(family, "embedder")
    known = family_in(folder)
    assert not known.has_head(folder)
    assert known.has_head(make_base(family, "reranker"))
    assert not known.has_head(make_base(family, "reranker", num_labels=2))
    with pytest.raises(ConfigError, match="skillserve train reranker"):
        open_reranker(folder)
    with pytest.raises(ConfigError, match="a classifier with 2 labels"):
        open_reranker(make_base(family, "reranker", num_labels=2))
    assert open_reranker(folder, new_head=True).config.num_labels == 1


def test_a_new_head_begins_with_the_first_tokens_state(family: str, make_base: Make) -> None:
    """Untrained, it is a random direction in the embedder's own space, not noise behind noise."""
    folder = make_base(family, "embedder")
    known, model = family_in(folder), open_reranker(folder, new_head=True)
    known.start_head(model, (), [], TrainSettings())
    states = torch.stack([state[0] for state in each_alone(AutoModel, folder)])
    if family == "xlm-roberta":
        direction, seen = model.classifier.out_proj.weight[0], torch.tanh(0.5 * states)
    else:
        direction, seen = model.classifier.weight[0], model.head.norm(torch.nn.functional.gelu(0.5 * states))
    with torch.no_grad():
        assert torch.allclose(score(model, sequences(), ()), seen @ direction, atol=SAME_SCORE)


def test_a_masked_language_model_is_a_base_of_both(family: str, make_base: Make, tmp_path: Path) -> None:
    """As the architecture's authors publish it: its own head is no reranker's."""
    plain = make_base(family, "embedder")
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(plain)).save_pretrained(tmp_path / "mlm")
    (tmp_path / "mlm" / "tokenizer.json").write_bytes((plain / "tokenizer.json").read_bytes())
    open_embedder(tmp_path / "mlm")
    assert not family_in(tmp_path / "mlm").has_head(tmp_path / "mlm")
    open_reranker(tmp_path / "mlm", new_head=True)


def test_positions_behind_paddings_are_all_there_are(make_base: Make) -> None:
    """XLM-RoBERTa with 66 learned positions reads 64 tokens, as bge-m3 with 8,194 reads 8,192."""
    base = resolve_base(str(make_base("xlm-roberta", "embedder")))
    assert draft_card(base, "embedder", max_tokens=64).max_tokens == 64
    with pytest.raises(ConfigError, match="--max-tokens 64"):
        draft_card(base, "embedder", max_tokens=65)
    longest = [np.full(64, 5, np.int32)]
    embed(open_embedder(base.folder), longest, draft_card(base, "embedder", max_tokens=64))


def test_prompts_are_the_bases(family: str, make_base: Make) -> None:
    folder = make_base(family, "embedder")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "q: ", "passage": "p"}}))
    card = draft_card(resolve_base(str(folder)), "embedder", max_tokens=60)
    assert (card.query_prompt, card.document_prompt) == ("q: ", "p")


def test_both_models_are_trained(
    family: str, make_base: Make, tiny_data: Path, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    """From an encoder to an embedder, and from that to a reranker with a new head."""
    data = read_training_data(tiny_data)
    base = resolve_base(str(make_base(family, "embedder")))
    train_embedder(data, base, tiny_settings, tmp_path / "embedder")
    embedder = resolve_base(str(tmp_path / "embedder"))
    train_reranker(data, embedder, embedder, tiny_settings, tmp_path / "reranker")
    for role in ("embedder", "reranker"):
        card = read_card(tmp_path / role, verify_weights=True)
        assert (card.family, card.role) == (family, role)
        assert card.training["final_loss"] < card.training["first_loss"]
