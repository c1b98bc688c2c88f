"""ModernBERT: an encoder with rotary positions and mostly local attention, and a cross-encoder with one logit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn
from transformers import ModernBertConfig, ModernBertForSequenceClassification, ModernBertModel, PreTrainedModel

from skillserve.tensors import Role
from skillserve.text import BERT_PAIR_FRAME, BERT_SINGLE_FRAME
from skillserve_training.families.encoder import Encoder

__all__ = ["ModernBert"]


class ModernBert(Encoder):
    """ModernBERT, as gte-modernbert-base and gte-reranker-modernbert-base."""

    config = ModernBertConfig
    classes: ClassVar[dict[Role, type[PreTrainedModel]]] = {
        "embedder": ModernBertModel,
        "reranker": ModernBertForSequenceClassification,
    }
    overrides: ClassVar[dict[str, object]] = {
        "attention_dropout": 0.0,
        "classifier_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
        "reference_compile": False,  # compiling takes longer than a short run
    }
    head_names: ClassVar[tuple[str, ...]] = ("head.", "classifier.")
    head_weights: ClassVar[tuple[str, str]] = ("head.dense.weight", "classifier.weight")
    frames: ClassVar[dict[Role, str]] = {"embedder": BERT_SINGLE_FRAME, "reranker": BERT_PAIR_FRAME}
    frame_tokens: ClassVar[dict[Role, tuple[str, ...]]] = {
        "embedder": ("[CLS]", "[SEP]"),
        "reranker": ("[CLS]", "[SEP]"),
    }

    def head(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """A layer with its norm, and the classifier."""
        return (model.head, model.classifier)

    def embeddings(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Words with their norm; positions are no weights."""
        return (model.base_model.embeddings,)

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Of the encoder."""
        return tuple(model.base_model.layers)
