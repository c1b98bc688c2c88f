"""Operations are counted from shapes; PyTorch's own counter, which watches the model run, says the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.errors import CardError
from skillserve.tensors import Ids, Role
from skillserve_bench.speed.flops import Flops, Shapes, read_shapes

LENS = (7, 30, 1)


def of_lengths(lens: tuple[int, ...]) -> list[Ids]:
    """Sequences of any tokens."""
    return [np.arange(length, dtype=np.int32) for length in lens]


def counted(weights: Path, role: Role, lens: tuple[int, ...]) -> Flops:
    """What we count; the family is a known one."""
    shapes = read_shapes(weights, role)
    assert shapes is not None
    return shapes.flops(of_lengths(lens))


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


@pytest.mark.parametrize(("num_asked", "num_read", "num_skills"), [(9, 20, 5), (20, 4, 1), (1, 1, 3)])
def test_late_interaction_takes_what_pytorch_counts(
    make_base: Callable[..., Path], num_asked: int, num_read: int, num_skills: int
) -> None:
    """Skills of one length, so that nothing is padded; their request is read once, as the model itself does."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from skillserve_training.families.late import LateBertModel

    weights = make_base("late-bert", "reranker")
    model = LateBertModel.from_pretrained(weights, attn_implementation="eager").eval()
    rng = np.random.default_rng(2)
    request = np.array([2, *rng.integers(5, 60, num_asked)], np.int32)
    skills = [np.array([2, *rng.integers(5, 60, num_read)], np.int32) for _ in range(num_skills)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model([torch.from_numpy(request).long()] * num_skills, [torch.from_numpy(skill).long() for skill in skills])
    shapes = read_shapes(weights, "reranker")
    assert shapes is not None
    found = shapes.flops([np.concatenate([request, skill]) for skill in skills])
    assert found.total == counter.get_total_flops()


def test_a_request_is_counted_once_as_long_as_its_candidates_follow_one_another(make_base: Callable[..., Path]) -> None:
    """By the linear layers, of which every token that is read takes the same."""
    shapes = read_shapes(make_base("late-bert", "reranker"), "reranker")
    assert shapes is not None
    first, second, skill = (np.array([2, *words], np.int32) for words in ([5, 6, 7], [8, 6], [9] * 9))
    token = shapes.flops([np.array([2, 2], np.int32)]).linear / 2
    requests = (first, first, second, first, first)
    pairs = [np.concatenate([request, skill]) for request in requests]
    assert shapes.flops(pairs).linear == token * (2 * len(first) + len(second) + 5 * len(skill))
    compared = sum(len(request) * len(skill) for request in requests)
    squares = 2 * len(first) ** 2 + len(second) ** 2 + 5 * len(skill) ** 2
    assert shapes.flops(pairs).attention == 2 * 32 * compared + 2 * 4 * 32 * squares


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
    assert shapes.flops(of_lengths(lens)) == Flops(linear=0.0, attention=2 * 4 * 24 * pairs)


def test_a_family_that_is_not_counted_says_so_and_no_configuration_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    assert read_shapes(tmp_path, "reranker") is None
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CardError, match="hidden_size"):
        read_shapes(tmp_path, "embedder")
