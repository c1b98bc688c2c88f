"""XLM-RoBERTa: BERT's layers, one segment type, learned positions that begin behind the one of padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, XLMRobertaForSequenceClassification, XLMRobertaModel

from skillserve.card import ModelCard
from skillserve.tensors import Role
from skillserve_export.families.family import Family
from skillserve_export.families.post_norm import embedded, post_norm_layers
from skillserve_export.layout import PackedLayout
from skillserve_export.modules import Classifier

__all__ = ["XlmRoberta"]


class XlmRoberta(Family):
    """XLM-RoBERTa, as bge-m3 and bge-reranker-v2-m3."""

    classes: ClassVar[dict[Role, type[PreTrainedModel]]] = {
        "embedder": XLMRobertaModel,
        "reranker": XLMRobertaForSequenceClassification,
    }
    unused: ClassVar[tuple[str, ...]] = ("pooler.",)

    def encoder(self, model: Any, card: ModelCard, folder: Path) -> nn.Module:  # noqa: ARG002
        """The same for texts and pairs."""
        return _Encoder(model.base_model)

    def score_head(self, model: Any, folder: Path) -> nn.Module:  # noqa: ARG002
        """Dense, tanh, one logit."""
        return Classifier(model.classifier.dense, nn.Tanh(), model.classifier.out_proj)

    def most_tokens(self, config: Any) -> int:
        """The first positions are those up to padding's own, which no token takes."""
        return int(config.max_position_embeddings - config.pad_token_id - 1)


class _Encoder(nn.Module):
    """Layers on packed tokens."""

    def __init__(self, roberta: Any) -> None:
        super().__init__()
        self.roberta = roberta
        self.padding = int(roberta.config.pad_token_id)

    def forward(self, layout: PackedLayout) -> Tensor:
        types = torch.zeros_like(layout.input_ids)
        hidden = embedded(self.roberta.embeddings, layout.input_ids, types, self.position(layout))
        return post_norm_layers(self.roberta, hidden, layout.bounds)

    def position(self, layout: PackedLayout) -> Tensor:
        """Positions `[T]` as transformers counts them: a padding token inside a text is not counted."""
        counted = (layout.input_ids != self.padding).to(torch.int64)
        running = torch.cumsum(counted, 0)
        before = (running - counted)[layout.bounds[:-1]][layout.sequence]
        return (running - before) * counted + self.padding
