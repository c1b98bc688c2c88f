"""ModernBERT: rotary positions, local attention in most layers and global in some, pre-norm, gated MLP."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import ModernBertForSequenceClassification, ModernBertModel, PreTrainedModel

from skillserve.card import ModelCard, Pooling
from skillserve.tensors import Role
from skillserve_export.cores import Band, Heads, banded_attention, segment_attention
from skillserve_export.families.family import Family
from skillserve_export.layout import PackedLayout
from skillserve_export.modules import Classifier
from skillserve_export.rope import Rope, rotated

__all__ = ["ModernBert"]

_EVERYTHING = (-1, -1)
"""How transformers writes the window of a global layer."""


class ModernBert(Family):
    """ModernBERT, as gte-modernbert-base and gte-reranker-modernbert-base."""

    classes: ClassVar[dict[Role, type[PreTrainedModel]]] = {
        "embedder": ModernBertModel,
        "reranker": ModernBertForSequenceClassification,
    }
    poolings: ClassVar[tuple[Pooling, ...]] = ("cls", "mean")
    overrides: ClassVar[dict[str, object]] = {"reference_compile": False}

    def encoder(self, model: Any, card: ModelCard, folder: Path) -> nn.Module:  # noqa: ARG002
        """The same for texts and pairs."""
        return _Encoder(model.base_model, card.max_tokens)

    def score_head(self, model: Any, folder: Path) -> nn.Module:  # noqa: ARG002
        """Dense, activation, norm, one logit."""
        return Classifier(model.head, model.classifier)

    def score_pooling(self, config: Any) -> Pooling:
        """As the model was trained."""
        pooling: Pooling = config.classifier_pooling
        return pooling


class _Encoder(nn.Module):
    """Layers on packed tokens."""

    def __init__(self, model: Any, max_tokens: int) -> None:
        super().__init__()
        self.model = model
        windows = {layer.attn.local_attention: layer.attn.rotary_emb for layer in model.layers}
        self.windows = list(windows)
        self.ropes = nn.ModuleList(Rope(rotary, max_tokens) for rotary in windows.values())

    def forward(self, layout: PackedLayout) -> Tensor:
        angles = {window: rope(layout.position) for window, rope in zip(self.windows, self.ropes, strict=True)}
        hidden: Tensor = self.model.embeddings(layout.input_ids)
        for layer in self.model.layers:
            own = layer.attn
            query, key, value = own.Wqkv(layer.attn_norm(hidden)).chunk(3, dim=-1)
            query, key = (
                rotated(x.view(-1, own.num_heads, own.head_dim), angles[own.local_attention]) for x in (query, key)
            )
            if own.local_attention == _EVERYTHING:
                mixed = segment_attention(query, key, value, layout.bounds, own.num_heads)
            else:
                heads, band = Heads(own.num_heads, own.num_heads), Band(*own.local_attention)
                mixed = banded_attention(query, key, value, layout.bounds, heads, band)
            hidden = hidden + own.Wo(mixed)
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
        normed: Tensor = self.model.final_norm(hidden)
        return normed
