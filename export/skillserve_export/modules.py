"""The two interfaces around a family's encoder: packed, as we serve it, and padded.

    packed    ids [T], lengths [S]   → guard → encoder [T, H] → pooling [S, H] → head [S, D] or [S] → home
    padded    ids and mask [B, L]            → encoder [B, L, H] → pooling [B, H] → the same head

Shape legend: S sequences, T tokens, B sequences of length L with padding, H hidden size, D embedding dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from skillserve.card import Pooling
from skillserve_export.cores import segment_mean
from skillserve_export.layout import Limits, packed_layout, rows_home

__all__ = ["Classifier", "PackedModel", "PaddedEncoder", "PaddedModel", "UnitRows"]


class PackedModel(nn.Module):
    """The wire contract around an encoder that takes a `PackedLayout`."""

    def __init__(self, encoder: nn.Module, head: nn.Module, pooling: Pooling, limits: Limits, config: Any) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = head
        self.pooling = pooling
        self.limits = limits

    def forward(self, input_ids: Tensor, seq_lens: Tensor, tok_end: Tensor, seq_end: Tensor) -> Tensor:
        """Rows of all sequences, those of malformed requests NaN."""
        layout = packed_layout(input_ids, seq_lens, tok_end, seq_end, self.limits)
        rows = _pooled(self.encoder(layout), layout.bounds, self.pooling)
        return rows_home(self.head(rows), layout.sound)


class PaddedModel(nn.Module):
    """The padded layout around an encoder that takes ids and mask `[B, L]`."""

    def __init__(self, encoder: nn.Module, head: nn.Module, pooling: Pooling, config: Any) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = head
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Rows `[B, D]` or scores `[B]`."""
        ids_BL, mask_BL = input_ids.to(torch.int64), attention_mask.to(torch.int64)
        rows: Tensor = self.head(_pooled_padded(self.encoder(ids_BL, mask_BL), mask_BL, self.pooling))
        return rows


class PaddedEncoder(nn.Module):
    """The transformers model itself, without its head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Hidden states `[B, L, H]`."""
        hidden: Tensor = self.model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        return hidden


class UnitRows(nn.Module):
    """An embedder's head: rows of length 1."""

    def forward(self, rows: Tensor) -> Tensor:
        """`[S, D]` → `[S, D]`."""
        return functional.normalize(rows, dim=-1)


class Classifier(nn.Module):
    """A reranker's head: layers that end in one logit."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, rows: Tensor) -> Tensor:
        """`[S, H]` → `[S]`."""
        logits: Tensor = self.layers(rows)
        return logits[:, 0]


def _pooled(hidden: Tensor, bounds: Tensor, pooling: Pooling) -> Tensor:
    """Hidden states `[T, H]` → `[S, H]`."""
    match pooling:
        case "cls":
            return hidden[bounds[:-1]]
        case "last":
            return hidden[bounds[1:] - 1]
        case "mean":
            return segment_mean(hidden, bounds)


def _pooled_padded(hidden_BLH: Tensor, mask_BL: Tensor, pooling: Pooling) -> Tensor:
    """Hidden states `[B, L, H]` → `[B, H]`."""
    match pooling:
        case "cls":
            return hidden_BLH[:, 0]
        case "last":
            place_BL = mask_BL * (torch.cumsum(torch.ones_like(mask_BL), 1) - 1)
            last_B = torch.amax(place_BL, dim=1)
            return hidden_BLH[torch.cumsum(torch.ones_like(last_B), 0) - 1, last_B]
        case "mean":
            weight = mask_BL.unsqueeze(-1).to(hidden_BLH.dtype)
            return (hidden_BLH * weight).sum(1) / weight.sum(1)
