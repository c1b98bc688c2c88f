"""BERT: an encoder that is averaged or read at [CLS], and a cross-encoder with one logit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedModel

from skillserve.card import Pooling
from skillserve.tensors import Role
from skillserve.text import BERT_PAIR_FRAME, BERT_SINGLE_FRAME
from skillserve_training.families.encoder import Encoder
from skillserve_training.tokenizer import token_ids

__all__ = ["Bert", "pair_types"]

_SEPARATOR = "[SEP]"


class Bert(Encoder):
    """BERT, as all-MiniLM-L6-v2 and its kind."""

    config = BertConfig
    classes: ClassVar[dict[Role, type[PreTrainedModel]]] = {
        "embedder": BertModel,
        "reranker": BertForSequenceClassification,
    }
    overrides: ClassVar[dict[str, object]] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    head_names: ClassVar[tuple[str, ...]] = ("bert.pooler.", "classifier.")
    head_weights: ClassVar[tuple[str, str]] = ("bert.pooler.dense.weight", "classifier.weight")
    frames: ClassVar[dict[Role, str]] = {"embedder": BERT_SINGLE_FRAME, "reranker": BERT_PAIR_FRAME}
    frame_tokens: ClassVar[dict[Role, tuple[str, ...]]] = {
        "embedder": ("[CLS]", _SEPARATOR),
        "reranker": ("[CLS]", _SEPARATOR),
    }
    poolings: ClassVar[tuple[Pooling, ...]] = ("mean", "cls")

    def score_tokens(self, folder: Path) -> tuple[int, ...]:
        """The separator; a pair's second segment begins behind its first one."""
        return token_ids(folder, (_SEPARATOR,))

    def score(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, tokens: tuple[int, ...]) -> Tensor:
        """The classifier's logit."""
        (separator,) = tokens
        types = pair_types(ids, mask, separator)
        logits: Tensor = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        return logits[:, 0].float()

    def head(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Pooler and classifier."""
        return (model.bert.pooler, model.classifier)

    def embeddings(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Words, positions and types, with their norm."""
        return (model.base_model.embeddings,)

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Of the encoder."""
        return tuple(model.base_model.encoder.layer)


def pair_types(ids: Tensor, mask: Tensor, separator: int) -> Tensor:
    """Segment ids `[B, L]`: 0 up to and including a sequence's first separator, 1 behind it, 0 on padding."""
    is_separator = (ids == separator).to(torch.int64)
    behind_first = is_separator.cumsum(1) - is_separator > 0
    return behind_first.to(torch.int64) * mask
