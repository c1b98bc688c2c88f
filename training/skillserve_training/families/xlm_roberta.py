"""XLM-RoBERTa: an encoder for a hundred languages, and a cross-encoder with one logit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from skillserve.tensors import Role
from skillserve.text import XLM_ROBERTA_PAIR_FRAME, XLM_ROBERTA_SINGLE_FRAME
from skillserve_training.families.encoder import Encoder

__all__ = ["XlmRoberta"]


class XlmRoberta(Encoder):
    """XLM-RoBERTa, as bge-m3 and bge-reranker-v2-m3."""

    config = XLMRobertaConfig
    classes: ClassVar[dict[Role, type[PreTrainedModel]]] = {
        "embedder": XLMRobertaModel,
        "reranker": XLMRobertaForSequenceClassification,
    }
    overrides: ClassVar[dict[str, object]] = {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": 0.0,
    }
    head_names: ClassVar[tuple[str, ...]] = ("classifier.",)
    head_weights: ClassVar[tuple[str, str]] = ("classifier.dense.weight", "classifier.out_proj.weight")
    frames: ClassVar[dict[Role, str]] = {"embedder": XLM_ROBERTA_SINGLE_FRAME, "reranker": XLM_ROBERTA_PAIR_FRAME}
    frame_tokens: ClassVar[dict[Role, tuple[str, ...]]] = {"embedder": ("<s>", "</s>"), "reranker": ("<s>", "</s>")}

    def most_tokens(self, config: PretrainedConfig) -> int:
        """The first positions, up to that of padding, are no token's."""
        return int(config.max_position_embeddings - config.pad_token_id - 1)

    def head(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The classifier, which has a layer of its own before the logit."""
        return (model.classifier,)

    def embeddings(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Words, positions and the one type, with their norm."""
        return (model.base_model.embeddings,)

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Of the encoder."""
        return tuple(model.base_model.encoder.layer)
