"""BERT with late interaction: a reranker that begins where an embedder is, and reads a request once for all skills."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillserve.card import ScoreKind
from skillserve.errors import ConfigError
from skillserve.pairs import Remembered
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids, Role
from skillserve.text import BERT_LATE_FRAME, BERT_SINGLE_FRAME
from skillserve_training.base import MINILM
from skillserve_training.families.bert import Bert
from skillserve_training.families.late import LateBertConfig, LateBertModel, rarity
from skillserve_training.families.loading import load
from skillserve_training.files import tensor_shapes
from skillserve_training.tokenizer import token_ids

__all__ = ["LateBert"]

_WEIGHTS = "token_weights"


class LateBert(Bert):
    """A reranker only; its base is any BERT, an embedder's best of all."""

    config = LateBertConfig
    classes: ClassVar[dict[Role, type[PreTrainedModel]]] = {"reranker": LateBertModel}
    frames: ClassVar[dict[Role, str]] = {"embedder": BERT_SINGLE_FRAME, "reranker": BERT_LATE_FRAME}
    score_kind: ClassVar[ScoreKind] = "max_sim"

    def open_embedder(self, folder: Path) -> PreTrainedModel:
        """There is none; ConfigError."""
        raise ConfigError(
            f"base `{folder}`",
            got="a reranker by late interaction",
            wanted="an embedder, or a model that nobody trained yet",
            fix=f"Name another base, such as --base {MINILM}",
        )

    def open_reranker(self, folder: Path, *, new_head: bool = False) -> PreTrainedModel:
        """The encoder with its weights of tokens."""
        return load(self.classes["reranker"], folder, config=self.overrides, optional=(_WEIGHTS,) if new_head else ())

    def score_tokens(self, folder: Path) -> tuple[int, ...]:
        """The opening token, at whose second one a pair's skill begins, and the separator."""
        return token_ids(folder, ("[CLS]", "[SEP]"))

    def score(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, tokens: tuple[int, ...]) -> Tensor:
        """Scores of pairs, whose sides are taken apart."""
        opening, _ = tokens
        lens = mask.sum(1).tolist()
        splits = [int((row == opening).nonzero()[1]) for row in ids]
        requests = [row[:split] for row, split in zip(ids, splits, strict=True)]
        skills = [row[split:length] for row, split, length in zip(ids, splits, lens, strict=True)]
        scores: Tensor = model(requests, skills)
        return scores

    @contextmanager
    def remembering(self, model: PreTrainedModel) -> Iterator[None]:
        """States of texts stay for as long as no weight changes and no gradient is wanted."""
        model.remembered = Remembered()
        try:
            yield
        finally:
            model.remembered = None

    def has_head(self, folder: Path) -> bool:
        """Whether tokens have weights."""
        return _WEIGHTS in tensor_shapes(folder)

    def start_head(
        self, model: PreTrainedModel, tokens: tuple[int, ...], skills: Sequence[Ids], settings: TrainSettings
    ) -> None:
        """Weigh tokens by how rare they are among the skills."""
        model.config.update({"window": settings.window, "scale": settings.scale})
        with torch.no_grad():
            model.token_weights.copy_(rarity(skills, model.config.vocab_size, tokens))

    def head(self, model: PreTrainedModel) -> Sequence[nn.Module]:  # noqa: ARG002
        """Nothing starts at nothing: weights of tokens are counted, not learned."""
        return ()
