"""Padded forward passes: embeddings and pair scores of token ids.

Legend: B sequences, L longest of them, D hidden size. Padding is masked out, so a row does not depend on its
neighbours beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from skillserve.card import ModelCard
from skillserve.console import Bar
from skillserve.pairs import reading_order
from skillserve.tensors import Ids, token_budget_batches
from skillserve_training.families import family_of
from skillserve_training.precision import Precision

__all__ = ["autocast", "embed", "embed_all", "grouped", "pad", "score", "score_all"]

_GROUP_TOKENS = {"cpu": 4_096, "cuda": 65_536}
"""Tokens in one padded pass; more gains nothing on a few cores, and fills a GPU."""


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Where matrix products run in this precision; weights, norms, pooling and losses stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def pad(sequences: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, both `[B, L]` int64; padding has id 0 and mask 0."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence)
        mask[row, : len(sequence)] = 1
    return ids.to(device), mask.to(device)


def embed(model: PreTrainedModel, sequences: Sequence[Ids], card: ModelCard) -> Tensor:
    """Unit rows `[B, D]` float32, pooled as the card says."""
    ids, mask = pad(sequences, model.device)
    return family_of(model).embed(model, ids, mask, card.pooling)


def score(model: PreTrainedModel, pairs: Sequence[Ids], tokens: tuple[int, ...]) -> Tensor:
    """Relevance logits `[B]` float32 of framed pairs; `tokens` as `weights.score_tokens` finds them."""
    ids, mask = pad(pairs, model.device)
    return family_of(model).score(model, ids, mask, tokens)


def embed_all(
    model: PreTrainedModel, sequences: Sequence[Ids], card: ModelCard, precision: Precision, bar: Bar | None = None
) -> Tensor:
    """Embeddings of any number of sequences, `[N, D]` float32, without gradients; `bar` counts them."""
    return _in_batches(sequences, lambda batch: embed(model, batch, card), model, precision, bar, len)


def score_all(
    model: PreTrainedModel,
    pairs: Sequence[Ids],
    tokens: tuple[int, ...],
    precision: Precision,
    bar: Bar | None = None,
) -> Tensor:
    """Logits of any number of pairs, `[N]` float32, without gradients; `bar` counts them."""
    key = reading_order(family_of(model).score_kind)
    return _in_batches(pairs, lambda batch: score(model, batch, tokens), model, precision, bar, key)


def grouped(
    sequences: Sequence[Ids],
    run: Callable[[Sequence[Ids]], Tensor],
    device: torch.device,
    key: Callable[[Ids], Any] = len,
) -> Tensor:
    """Rows of any number of sequences, in the given order, from passes of `run` over groups of neighbours by `key`.

    By length, little is padded.
    """
    order = sorted(range(len(sequences)), key=lambda i: key(sequences[i]))
    groups = token_budget_batches([len(sequences[i]) for i in order], max_tokens=_GROUP_TOKENS[device.type])
    found = torch.cat([run([sequences[i] for i in order[group]]) for group in groups])
    home = torch.empty(len(order), dtype=torch.int64)
    home[torch.tensor(order)] = torch.arange(len(order))
    return found[home.to(found.device)]


def _in_batches(
    sequences: Sequence[Ids],
    run: Callable[[Sequence[Ids]], Tensor],
    model: PreTrainedModel,
    precision: Precision,
    bar: Bar | None,
    key: Callable[[Ids], Any],
) -> Tensor:
    def counted(group: Sequence[Ids]) -> Tensor:
        rows = run(group).cpu()
        if bar:
            bar.advance(len(rows))
        return rows

    was_training = model.training
    model.eval()
    with torch.no_grad(), autocast(precision, model.device):
        found = grouped(sequences, counted, model.device, key)
    model.train(was_training)
    return found
