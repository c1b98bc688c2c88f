"""Operations are counted from shapes; PyTorch's own counter, which watches the model run, says the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.errors import CardError
from skillserve.tensors import Role
from skillserve_bench.speed.flops import Flops, Shapes, read_shapes

LENS = (7, 30, 1)


def counted(weights: Path, role: Role, lens: tuple[int, ...]) -> Flops:
    """What we count; the family is a known one."""
    shapes = read_shapes(weights, role)
    assert shapes is not None
    return shapes.flops(lens)


def observed(model: Any, lens: tuple[int, ...], vocab_size: int) -> float:
    """What PyTorch sees, one sequence after the other, without padding."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for length in lens:
            ids = torch.arange(length)[None, :] % vocab_size
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return float(counter.get_total_flops())


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_an_encoder_takes_what_pytorch_counts(make_base: Callable[..., Path], family: str) -> None:
    import transformers

    name = {"bert": "BertModel", "xlm-roberta": "XLMRobertaModel"}[family]
    weights = make_base(family, "embedder")
    model = (
        getattr(transformers, name)
        .from_pretrained(weights, add_pooling_layer=False, attn_implementation="eager")
        .eval()
    )
    assert counted(weights, "embedder", LENS).total == observed(model, LENS, model.config.vocab_size)


def test_a_rerankers_head_counts(make_base: Callable[..., Path]) -> None:
    from transformers import BertForSequenceClassification

    weights = make_base("bert", "reranker")
    model = BertForSequenceClassification.from_pretrained(weights, attn_implementation="eager").eval()
    assert counted(weights, "reranker", LENS).total == observed(model, LENS, model.config.vocab_size)


@pytest.mark.parametrize(("family", "name"), [("modernbert", "ModernBertModel"), ("qwen3", "Qwen3Model")])
def test_linear_layers_of_other_families_take_what_pytorch_counts(
    make_base: Callable[..., Path], family: str, name: str
) -> None:
    """PyTorch computes all L² pairs of these and masks some; what is left over beside attention must agree."""
    import transformers

    weights = make_base(family, "embedder")
    model = getattr(transformers, name).from_pretrained(weights, attn_implementation="eager").eval()
    config = json.loads((weights / "config.json").read_text())
    heads_dim = config["num_attention_heads"] * config.get("head_dim", config["hidden_size"] // 4)
    square = sum(4 * heads_dim * length**2 * config["num_hidden_layers"] for length in LENS)
    # Positions are multiplied with frequencies to get rotary angles, which is no layer's product.
    angles = observed_angles(model, LENS)
    found = observed(model, LENS, config["vocab_size"])
    assert counted(weights, "embedder", LENS).linear == found - square - angles


def observed_angles(model: Any, lens: tuple[int, ...]) -> float:
    """What rotary modules take."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for length in lens:
            ids = torch.zeros((1, length), dtype=torch.int64)
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    per_module = counter.get_flop_counts()
    return float(sum(sum(ops.values()) for name, ops in per_module.items() if name.endswith("rotary_emb")))


@pytest.mark.parametrize("reach", [(None, None), (None, 0), (8, 8), (3, 0), (2, 5)])
def test_attention_counts_the_pairs_that_a_mask_lets_through(reach: tuple[int | None, int | None]) -> None:
    lens = (1, 2, 9, 40)
    pairs = 0
    for length in lens:
        ahead = np.arange(length)[None, :] - np.arange(length)[:, None]
        before, after = reach
        seen = np.ones((length, length), np.bool_)
        seen &= ahead >= -before if before is not None else True
        seen &= ahead <= after if after is not None else True
        pairs += int(seen.sum())
    shapes = Shapes(products=(), head_flops=0.0, heads_dim=24, reaches=(reach, reach))
    assert shapes.flops(lens) == Flops(linear=0.0, attention=2 * 4 * 24 * pairs)


def test_a_family_that_is_not_counted_says_so_and_no_configuration_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "late-bert"}')
    assert read_shapes(tmp_path, "reranker") is None
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CardError, match="hidden_size"):
        read_shapes(tmp_path, "embedder")
