"""Qwen3: a decoder, read at its last token; rotary positions, grouped queries, norms on queries and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3ForCausalLM, Qwen3Model

from skillserve.card import ModelCard, Pooling, ScoreKind
from skillserve.tensors import Role
from skillserve_export.cores import CAUSAL, Band, Heads, banded_attention
from skillserve_export.families.family import Family
from skillserve_export.layout import PackedLayout
from skillserve_export.rope import Rope, rotated
from skillserve_export.vocabulary import ANSWERS, token_ids

__all__ = ["Qwen3"]


class Qwen3(Family):
    """Qwen3, as Qwen3-Embedding, Qwen3-Reranker and what SkillRet made of them."""

    classes: ClassVar[dict[Role, type[PreTrainedModel]]] = {"embedder": Qwen3Model, "reranker": Qwen3ForCausalLM}
    poolings: ClassVar[tuple[Pooling, ...]] = ("last",)
    score_kind: ClassVar[ScoreKind] = "yes_no"

    def encoder(self, model: Any, card: ModelCard, folder: Path) -> nn.Module:  # noqa: ARG002
        """The decoder; a language model's head is left out."""
        return _Decoder(model.base_model, card.max_tokens)

    def score_head(self, model: Any, folder: Path) -> nn.Module:
        """The gap between two answers."""
        return _YesNoGap(model.get_output_embeddings().weight, *token_ids(folder, *ANSWERS))

    def score_pooling(self, config: Any) -> Pooling:  # noqa: ARG002
        """The answer stands behind the last token."""
        return "last"


class _YesNoGap(nn.Module):
    """logit(yes) - logit(no), from two rows of the head: logits over the vocabulary are never made."""

    answers: Tensor

    def __init__(self, head: Tensor, yes: int, no: int) -> None:
        super().__init__()
        self.register_buffer("answers", (head[yes] - head[no]).detach())

    def forward(self, rows: Tensor) -> Tensor:
        # Summed row by row, not as a matrix product, which half precision would round: strong candidates would tie.
        return (rows * self.answers).sum(-1)


class _Decoder(nn.Module):
    """Layers on packed tokens."""

    def __init__(self, model: Any, max_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.rope = Rope(model.rotary_emb, max_tokens)
        self.heads = Heads(int(model.config.num_attention_heads), int(model.config.num_key_value_heads))

    def forward(self, layout: PackedLayout) -> Tensor:
        angles = self.rope(layout.position)
        hidden: Tensor = self.model.embed_tokens(layout.input_ids)
        for layer in self.model.layers:
            own = layer.self_attn
            normed = layer.input_layernorm(hidden)
            query = own.q_norm(own.q_proj(normed).view(-1, self.heads.query, own.head_dim))
            key = own.k_norm(own.k_proj(normed).view(-1, self.heads.key, own.head_dim))
            mixed = banded_attention(
                rotated(query, angles), rotated(key, angles), own.v_proj(normed), layout.bounds, self.heads, _band(own)
            )
            hidden = hidden + own.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        last: Tensor = self.model.norm(hidden)
        return last


def _band(attention: Any) -> Band:
    """Everything before a token, or, in the layers that say so, only so many tokens, itself among them."""
    return Band(attention.sliding_window - 1, 0) if attention.sliding_window else CAUSAL
