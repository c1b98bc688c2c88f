"""What encoders have in common: embeddings from a mean or the first token, and a cross-encoder with one logit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillserve.card import Pooling, ScoreKind
from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids, Role
from skillserve_training.base import MINILM
from skillserve_training.families.family import Family
from skillserve_training.families.loading import load
from skillserve_training.files import tensor_shapes

__all__ = ["Encoder"]

_FIRST_GAIN = 0.5
"""[CLS] of a BERT has entries around 1; half of them stays in the part of tanh that still has a slope."""


class Encoder(Family):
    """An architecture whose tokens all see each other."""

    classes: ClassVar[dict[Role, type[PreTrainedModel]]]
    overrides: ClassVar[dict[str, object]]
    """Fields of config.json that opening sets. No dropout, for one: runs are short, and on a CPU it keeps attention off
    its fast path, half of the time of a step."""
    head_names: ClassVar[tuple[str, ...]]
    """How the names of all tensors of a reranker's head begin."""
    head_weights: ClassVar[tuple[str, str]]
    """Names of the weights of the head's first layer and of its last one."""
    poolings: ClassVar[tuple[Pooling, ...]] = ("cls", "mean")
    score_kind: ClassVar[ScoreKind] = "logit"

    def open_embedder(self, folder: Path) -> PreTrainedModel:
        """A pooler of the architecture's own may be missing: embedders pool as their card says."""
        model = load(self.classes["embedder"], folder, config=self.overrides, optional=("pooler.",))
        pooler = getattr(model, "pooler", None)
        if pooler is not None:
            # Several processes wait for the gradient of everything that learns.
            pooler.requires_grad_(requires_grad=False)
        return model

    def open_reranker(self, folder: Path, *, new_head: bool = False) -> PreTrainedModel:
        """A model with one logit; ConfigError if its classifier has more."""
        if new_head:
            settings = self.overrides | {"num_labels": 1}
            return load(self.classes["reranker"], folder, config=settings, optional=self.head_names)
        model = load(self.classes["reranker"], folder, config=self.overrides)
        if model.config.num_labels != 1:
            raise ConfigError(
                f"weights in `{folder}`",
                got=f"a classifier with {model.config.num_labels} labels",
                wanted="one label, the relevance",
                fix=f"Train one: skillserve train reranker --base {MINILM}",
            )
        return model

    def score_tokens(self, folder: Path) -> tuple[int, ...]:  # noqa: ARG002
        """None."""
        return ()

    def pooled(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
        """Mean over a sequence's tokens, or its first one."""
        hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if pooling == "cls":
            return hidden[:, 0]
        return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def score(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, tokens: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """The classifier's logit."""
        logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
        return logits[:, 0].float()

    def has_head(self, folder: Path) -> bool:
        """Whether there is a head of one logit."""
        shapes = tensor_shapes(folder)
        first, last = self.head_weights
        return first in shapes and shapes.get(last, (0,))[0] == 1

    def start_head(
        self,
        model: PreTrainedModel,
        tokens: tuple[int, ...],  # noqa: ARG002
        skills: Sequence[Ids],  # noqa: ARG002
        settings: TrainSettings,  # noqa: ARG002
    ) -> None:
        """Begin with a first layer that hands its input on nearly as it is, and a last one without a bias.

        A random first layer would first have to learn to let anything through, and there are few steps to learn in.
        """
        first, last = (model.get_submodule(name.removesuffix(".weight")) for name in self.head_weights)
        with torch.no_grad():
            nn.init.eye_(first.weight).mul_(_FIRST_GAIN)
            nn.init.normal_(last.weight, std=model.config.initializer_range)
            for layer in (first, last):
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
