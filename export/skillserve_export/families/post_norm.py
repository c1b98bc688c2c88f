"""Layers of BERT and of what is built like it: bidirectional attention, norms behind each sum."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from skillserve_export.cores import segment_attention

__all__ = ["embedded", "post_norm_layers"]


def embedded(tables: Any, ids: Tensor, types: Tensor, position: Tensor) -> Tensor:
    """Words, segment types and learned positions: three times `[T]` → `[T, H]`."""
    # Summed in the order of transformers, since addition in floating point is not associative.
    hidden = tables.word_embeddings(ids) + tables.token_type_embeddings(types)
    normed: Tensor = tables.LayerNorm(hidden + tables.position_embeddings(position))
    return normed


def post_norm_layers(model: Any, hidden: Tensor, bounds: Tensor) -> Tensor:
    """All layers of an encoder on packed tokens: `[T, H]` → `[T, H]`."""
    num_heads = int(model.config.num_attention_heads)
    for layer in model.encoder.layer:
        own = layer.attention.self
        mixed = segment_attention(own.query(hidden), own.key(hidden), own.value(hidden), bounds, num_heads)
        attended = layer.attention.output(mixed, hidden)
        hidden = layer.output(layer.intermediate(attended), attended)
    return hidden
