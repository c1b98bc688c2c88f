"""BERT: an encoder that is averaged or read at [CLS], and a cross-encoder with one logit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedModel

from skillserve.card import Pooling, ScoreKind
from skillserve.errors import ConfigError
from skillserve.tensors import Role
from skillserve.text import BERT_PAIR_FRAME, BERT_SINGLE_FRAME
from skillserve_training.base import MINILM
from skillserve_training.families.family import Family
from skillserve_training.families.loading import load
from skillserve_training.files import tensor_shapes
from skillserve_training.tokenizer import token_ids

__all__ = ["Bert", "pair_types"]

_SEPARATOR = "[SEP]"
_POOLER = ("pooler.",)
_HEAD = ("bert.pooler.", "classifier.")
_POOLER_GAIN = 0.5
"""[CLS] of a BERT has entries around 1; half of them stays in the part of tanh that still has a slope."""
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""Runs are short, and on a CPU dropout keeps attention off its fast path: half of the time of a step."""


class Bert(Family):
    """BERT, as all-MiniLM-L6-v2 and its kind."""

    config = BertConfig
    architectures: ClassVar[dict[Role, str]] = {
        "embedder": "BertModel",
        "reranker": "BertForSequenceClassification",
    }
    frames: ClassVar[dict[Role, str]] = {"embedder": BERT_SINGLE_FRAME, "reranker": BERT_PAIR_FRAME}
    frame_tokens: ClassVar[dict[Role, tuple[str, ...]]] = {
        "embedder": ("[CLS]", _SEPARATOR),
        "reranker": ("[CLS]", _SEPARATOR),
    }
    poolings: ClassVar[tuple[Pooling, ...]] = ("mean", "cls")
    score_kind: ClassVar[ScoreKind] = "logit"

    def open_embedder(self, folder: Path) -> PreTrainedModel:
        """BERT's own pooler may be missing: embedders pool as their card says."""
        model = load(BertModel, folder, config=_NO_DROPOUT, optional=_POOLER)
        # Several processes wait for the gradient of everything that learns.
        model.pooler.requires_grad_(requires_grad=False)
        return model

    def open_reranker(self, folder: Path, *, new_head: bool = False) -> PreTrainedModel:
        """A model with one logit; ConfigError if its classifier has more."""
        if new_head:
            return load(BertForSequenceClassification, folder, config=_NO_DROPOUT | {"num_labels": 1}, optional=_HEAD)
        model = load(BertForSequenceClassification, folder, config=_NO_DROPOUT)
        if model.config.num_labels != 1:
            raise ConfigError(
                f"weights in `{folder}`",
                got=f"a classifier with {model.config.num_labels} labels",
                wanted="one label, the relevance",
                fix=f"Train one: skillserve train reranker --base {MINILM}",
            )
        return model

    def score_tokens(self, folder: Path) -> tuple[int, ...]:
        """The separator; a pair's second segment begins behind its first one."""
        return token_ids(folder, (_SEPARATOR,))

    def pooled(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
        """Mean over a sequence's tokens, or its first one."""
        hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if pooling == "cls":
            return hidden[:, 0]
        return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def score(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, tokens: tuple[int, ...]) -> Tensor:
        """The classifier's logit."""
        (separator,) = tokens
        types = pair_types(ids, mask, separator)
        logits: Tensor = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        return logits[:, 0].float()

    def has_head(self, folder: Path) -> bool:
        """Whether there is a classifier of one logit."""
        shapes = tensor_shapes(folder)
        return shapes.get("classifier.weight", (0,))[0] == 1 and "bert.pooler.dense.weight" in shapes

    def start_head(self, model: PreTrainedModel) -> None:
        """Begin with a pooler that hands [CLS] on nearly as it is, and a classifier without a bias.

        A random pooler would first have to learn to let anything through, and there are few steps to learn in.
        """
        pooler = model.bert.pooler.dense
        with torch.no_grad():
            nn.init.eye_(pooler.weight).mul_(_POOLER_GAIN)
            nn.init.zeros_(pooler.bias)
            nn.init.normal_(model.classifier.weight, std=model.config.initializer_range)
            nn.init.zeros_(model.classifier.bias)

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
