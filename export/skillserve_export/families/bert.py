"""BERT: learned positions, segment types, bidirectional attention, post-norm.

The packed modules reuse the transformers model's own layers for everything that works on single tokens, which
is all but attention and pooling: those take `[T, H]` as well as `[B, L, H]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, BertModel

from skillserve.card import ModelCard
from skillserve.errors import ContractError
from skillserve_export.cores import segment_attention, segment_mean
from skillserve_export.layout import PackedLayout, packed_layout, rows_home

__all__ = ["PackedBertEmbedder", "PackedBertReranker", "load", "packed"]

_SEPARATOR = "[SEP]"


def load(folder: Path, card: ModelCard) -> nn.Module:
    """The transformers model of a weights folder, float32, evaluation mode; safetensors only, no remote code."""
    kind = BertModel if card.role == "embedder" else BertForSequenceClassification
    # "eager": the stock export traces attention as plain products, which the older opset can express.
    model = kind.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    )
    module: nn.Module = model.eval()
    return module


def packed(model: Any, card: ModelCard, folder: Path) -> nn.Module:
    """Wrap a loaded model as a packed module."""
    if isinstance(model, BertModel):
        return PackedBertEmbedder(model, card).eval()
    if not isinstance(model, BertForSequenceClassification) or model.config.num_labels != 1:
        raise ContractError(
            f"reranker `{card.name}`",
            got=f"{type(model).__name__} with {model.config.num_labels} labels",
            wanted="BertForSequenceClassification with one label",
            fix="Train it with `skillserve train reranker`.",
        )
    separator = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(_SEPARATOR)
    return PackedBertReranker(model, card, separator).eval()


class _PackedBert(nn.Module):
    """Embeddings and encoder on `[T, H]`."""

    def __init__(self, bert: Any, card: ModelCard) -> None:
        super().__init__()
        self.config: BertConfig = bert.config
        self.bert = bert
        self.vocab_size = card.vocab_size
        self.max_tokens = card.max_tokens
        self.num_heads = int(bert.config.num_attention_heads)

    def lay_out(self, input_ids: Tensor, seq_lens: Tensor, tok_end: Tensor, seq_end: Tensor) -> PackedLayout:
        return packed_layout(
            input_ids, seq_lens, tok_end, seq_end, vocab_size=self.vocab_size, max_tokens=self.max_tokens
        )

    def encode(self, layout: PackedLayout, types: Tensor) -> Tensor:
        """Hidden states `[T, H]`; `types [T]` are segment ids."""
        tables = self.bert.embeddings
        # Summed in the order of transformers, since addition in floating point is not associative.
        hidden: Tensor = tables.word_embeddings(layout.input_ids) + tables.token_type_embeddings(types)
        hidden = tables.LayerNorm(hidden + tables.position_embeddings(layout.position))
        for layer in self.bert.encoder.layer:
            own = layer.attention.self
            mixed = segment_attention(
                own.query(hidden), own.key(hidden), own.value(hidden), layout.bounds, self.num_heads
            )
            attended = layer.attention.output(mixed, hidden)
            hidden = layer.output(layer.intermediate(attended), attended)
        return hidden


class PackedBertEmbedder(_PackedBert):
    """`[T]` ids → `[S, D]` embeddings, mean or CLS pooling, unit length if the card says so."""

    def __init__(self, bert: BertModel, card: ModelCard) -> None:
        super().__init__(bert, card)
        self.pooling = card.pooling
        self.normalised = card.normalised

    def forward(self, input_ids: Tensor, seq_lens: Tensor, tok_end: Tensor, seq_end: Tensor) -> Tensor:
        """The wire contract of the embedder."""
        layout = self.lay_out(input_ids, seq_lens, tok_end, seq_end)
        hidden = self.encode(layout, torch.zeros_like(layout.input_ids))
        rows = hidden[layout.bounds[:-1]] if self.pooling == "cls" else segment_mean(hidden, layout.bounds)
        if self.normalised:
            rows = functional.normalize(rows, dim=-1)
        return rows_home(rows, layout.sound)


class PackedBertReranker(_PackedBert):
    """`[T]` ids of request-skill pairs → `[S]` logits."""

    def __init__(self, model: BertForSequenceClassification, card: ModelCard, separator: int) -> None:
        super().__init__(model.bert, card)
        self.classifier = model.classifier
        self.separator = separator

    def forward(self, input_ids: Tensor, seq_lens: Tensor, tok_end: Tensor, seq_end: Tensor) -> Tensor:
        """The wire contract of the reranker."""
        layout = self.lay_out(input_ids, seq_lens, tok_end, seq_end)
        hidden = self.encode(layout, self._pair_types(layout))
        pooled = self.bert.pooler.activation(self.bert.pooler.dense(hidden[layout.bounds[:-1]]))
        return rows_home(self.classifier(pooled)[:, 0], layout.sound)

    def _pair_types(self, layout: PackedLayout) -> Tensor:
        """0 up to and including the first separator of a sequence, 1 behind it.

        The texts in a frame are tokenised without special tokens, so a separator is always the frame's own.
        """
        is_separator = (layout.input_ids == self.separator).to(torch.int64)
        before = torch.cumsum(is_separator, 0) - is_separator
        return torch.clamp(before - before[layout.bounds[:-1]][layout.sequence], max=1)
