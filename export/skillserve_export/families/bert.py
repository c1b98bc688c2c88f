"""BERT: learned positions, segment types, bidirectional attention, post-norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification, BertModel, PreTrainedModel

from skillserve.card import ModelCard
from skillserve.tensors import Role
from skillserve_export.families.family import Family
from skillserve_export.families.post_norm import embedded, post_norm_layers
from skillserve_export.layout import PackedLayout
from skillserve_export.modules import Classifier
from skillserve_export.vocabulary import token_ids

__all__ = ["Bert", "BertEncoder"]

_SEPARATOR = "[SEP]"


class Bert(Family):
    """BERT, as all-MiniLM-L6-v2 and its kind."""

    classes: ClassVar[dict[Role, type[PreTrainedModel]]] = {
        "embedder": BertModel,
        "reranker": BertForSequenceClassification,
    }
    unused: ClassVar[tuple[str, ...]] = ("pooler.",)

    def encoder(self, model: Any, card: ModelCard, folder: Path) -> nn.Module:
        """Pairs have two segments, single texts one."""
        if card.role == "embedder":
            return BertEncoder(model.base_model)
        return _PairEncoder(model.base_model, *token_ids(folder, _SEPARATOR))

    def padded_encoder(self, model: Any, card: ModelCard, folder: Path) -> nn.Module:
        """The same in the padded layout."""
        if card.role == "embedder":
            return super().padded_encoder(model, card, folder)
        return _PaddedPairEncoder(model.base_model, *token_ids(folder, _SEPARATOR))

    def score_head(self, model: Any, folder: Path) -> nn.Module:  # noqa: ARG002
        """Pooler and classifier."""
        return Classifier(model.bert.pooler.dense, model.bert.pooler.activation, model.classifier)


class BertEncoder(nn.Module):
    """Layers on packed tokens, all of them in the first segment."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, layout: PackedLayout) -> Tensor:
        """Hidden states `[T, H]`."""
        hidden = embedded(self.bert.embeddings, layout.input_ids, self.types(layout), layout.position)
        return post_norm_layers(self.bert, hidden, layout.bounds)

    def types(self, layout: PackedLayout) -> Tensor:
        """Segment ids `[T]`."""
        return torch.zeros_like(layout.input_ids)


class _PairEncoder(BertEncoder):
    """The same for pairs."""

    def __init__(self, bert: Any, separator: int) -> None:
        super().__init__(bert)
        self.separator = separator

    def types(self, layout: PackedLayout) -> Tensor:
        before = _separators_before(layout.input_ids, self.separator, dim=0)
        return torch.clamp(before - before[layout.bounds[:-1]][layout.sequence], max=1)


class _PaddedPairEncoder(nn.Module):
    """The transformers model itself, with the segments of pairs."""

    def __init__(self, bert: Any, separator: int) -> None:
        super().__init__()
        self.bert = bert
        self.separator = separator

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        types_BL = torch.clamp(_separators_before(ids_BL, self.separator, dim=1), max=1) * mask_BL
        hidden: Tensor = self.bert(input_ids=ids_BL, attention_mask=mask_BL, token_type_ids=types_BL).last_hidden_state
        return hidden


def _separators_before(ids: Tensor, separator: int, dim: int) -> Tensor:
    """How many separators stand before each token: from the first one on, a pair is in its second segment.

    The texts in a frame are tokenised without special tokens, so a separator is always the frame's own.
    """
    is_separator = (ids == separator).to(torch.int64)
    return torch.cumsum(is_separator, dim) - is_separator
