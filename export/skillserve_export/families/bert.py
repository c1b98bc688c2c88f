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
from skillserve.errors import CardError, ContractError
from skillserve_export.cores import segment_attention, segment_mean
from skillserve_export.layout import Limits, PackedLayout, packed_layout, rows_home

__all__ = ["PackedBertEmbedder", "PackedBertReranker", "PaddedBert", "load", "packed", "padded"]

_SEPARATOR = "[SEP]"


def load(folder: Path, card: ModelCard) -> nn.Module:
    """The transformers model of a weights folder, float32, evaluation mode; safetensors only, no remote code.

    Raises CardError if the card promises what the model does not have.
    """
    kind = BertModel if card.role == "embedder" else BertForSequenceClassification
    # "eager": the stock export traces attention as plain products, which the older opset can express.
    model = kind.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    )
    _check_card(card, model.config)
    module: nn.Module = model.eval()
    return module


def packed(model: Any, card: ModelCard, folder: Path, max_request_tokens: int) -> nn.Module:
    """Wrap a loaded model as a packed module, sharing its weights."""
    limits = Limits(card.vocab_size, card.max_tokens, max_request_tokens)
    if card.role == "embedder":
        return PackedBertEmbedder(model, card, limits).eval()
    return PackedBertReranker(model, _separator(folder), limits).eval()


def padded(model: Any, card: ModelCard, folder: Path) -> nn.Module:
    """Wrap a loaded model behind `input_ids` and `attention_mask` `[B, L]`."""
    return PaddedBert(model, card, _separator(folder)).eval()


class _PackedBert(nn.Module):
    """Embeddings and encoder on `[T, H]`."""

    def __init__(self, bert: Any, limits: Limits) -> None:
        super().__init__()
        self.config: BertConfig = bert.config
        self.bert = bert
        self.limits = limits
        self.num_heads = int(bert.config.num_attention_heads)

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

    def __init__(self, bert: Any, card: ModelCard, limits: Limits) -> None:
        super().__init__(bert, limits)
        self.pooling = card.pooling
        self.normalised = card.normalised

    def forward(self, input_ids: Tensor, seq_lens: Tensor, tok_end: Tensor, seq_end: Tensor) -> Tensor:
        """The wire contract of the embedder."""
        layout = packed_layout(input_ids, seq_lens, tok_end, seq_end, self.limits)
        hidden = self.encode(layout, torch.zeros_like(layout.input_ids))
        rows = hidden[layout.bounds[:-1]] if self.pooling == "cls" else segment_mean(hidden, layout.bounds)
        if self.normalised:
            rows = functional.normalize(rows, dim=-1)
        return rows_home(rows, layout.sound)


class PackedBertReranker(_PackedBert):
    """`[T]` ids of request-skill pairs → `[S]` logits."""

    def __init__(self, model: Any, separator: int, limits: Limits) -> None:
        super().__init__(model.bert, limits)
        self.classifier = model.classifier
        self.separator = separator

    def forward(self, input_ids: Tensor, seq_lens: Tensor, tok_end: Tensor, seq_end: Tensor) -> Tensor:
        """The wire contract of the reranker."""
        layout = packed_layout(input_ids, seq_lens, tok_end, seq_end, self.limits)
        before = _separators_before(layout.input_ids, self.separator, dim=0)
        types = torch.clamp(before - before[layout.bounds[:-1]][layout.sequence], max=1)
        hidden = self.encode(layout, types)
        pooled = self.bert.pooler.activation(self.bert.pooler.dense(hidden[layout.bounds[:-1]]))
        return rows_home(self.classifier(pooled)[:, 0], layout.sound)


class PaddedBert(nn.Module):
    """The transformers model itself, with pair types and pooling: `[B, L]` ids and mask → `[B, D]` or `[B]`."""

    def __init__(self, model: Any, card: ModelCard, separator: int) -> None:
        super().__init__()
        self.config: BertConfig = model.config
        self.model = model
        self.role = card.role
        self.pooling = card.pooling
        self.normalised = card.normalised
        self.separator = separator

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The padded layout."""
        ids_BL, mask_BL = input_ids.to(torch.int64), attention_mask.to(torch.int64)
        if self.role == "reranker":
            types_BL = torch.clamp(_separators_before(ids_BL, self.separator, dim=1), max=1) * mask_BL
            logits: Tensor = self.model(input_ids=ids_BL, attention_mask=mask_BL, token_type_ids=types_BL).logits
            return logits[:, 0]
        hidden_BLH: Tensor = self.model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        if self.pooling == "cls":
            rows = hidden_BLH[:, 0]
        else:
            weight = mask_BL.unsqueeze(-1).to(hidden_BLH.dtype)
            rows = (hidden_BLH * weight).sum(1) / weight.sum(1)
        return functional.normalize(rows, dim=-1) if self.normalised else rows


def _separators_before(ids: Tensor, separator: int, dim: int) -> Tensor:
    """How many separators stand before each token: from the first one on, a pair is in its second segment.

    The texts in a frame are tokenised without special tokens, so a separator is always the frame's own.
    """
    is_separator = (ids == separator).to(torch.int64)
    return torch.cumsum(is_separator, dim) - is_separator


def _separator(folder: Path) -> int:
    token: int | None = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(_SEPARATOR)
    if token is None:
        raise ContractError(
            f"tokenizer in `{folder}`",
            got=f"no token {_SEPARATOR}",
            wanted="the tokenizer of a BERT model",
            fix="Train the model again, or correct the family in its card.",
        )
    return token


def _check_card(card: ModelCard, config: BertConfig) -> None:
    """A card that promises more than the model has would let ids and positions past the guard."""
    found: dict[str, tuple[object, object]] = {
        "vocab_size": (card.vocab_size, config.vocab_size),
        "max_tokens": (card.max_tokens, min(card.max_tokens, config.max_position_embeddings)),
        "dim": (card.dim, config.hidden_size if card.role == "embedder" else None),
    }
    wrong = {name: pair for name, pair in found.items() if pair[0] != pair[1]}
    if card.role == "reranker" and config.num_labels != 1:
        wrong["labels"] = (1, config.num_labels)
    if card.pooling not in {None, "mean", "cls"}:
        wrong["pooling"] = (card.pooling, "mean or cls")
    if wrong:
        raise CardError(
            f"card of `{card.name}`",
            got=", ".join(f"{name} {promised}" for name, (promised, _) in wrong.items()),
            wanted=", ".join(f"{name} {model}" for name, (_, model) in wrong.items()) + ", as the model has it",
            fix="Write the card again with `skillserve card`, or train the model again.",
        )
