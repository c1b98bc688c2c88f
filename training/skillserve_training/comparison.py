"""The reranker's objective: in each list the fitting skill is to score highest, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillserve.pairs import reading_order
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids
from skillserve_training.families import family_of
from skillserve_training.forward import autocast, grouped, score
from skillserve_training.lists import Listing, RerankerTexts
from skillserve_training.losses import listwise_loss, pointwise_loss
from skillserve_training.nearness import Nearness
from skillserve_training.objective import Synchronise, Trainee
from skillserve_training.precision import Precision

__all__ = ["Comparison", "RerankerTrainee"]

_LOSSES = {"listwise": listwise_loss, "pointwise": pointwise_loss}


class RerankerTrainee(Trainee):
    """Framed pairs → logits `[B]`."""

    def __init__(
        self, pretrained: PreTrainedModel, tokens: tuple[int, ...], precision: Precision, *, new_head: bool
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self._tokens = tokens
        self._precision: Precision = precision
        self._new_head = new_head

    def forward(self, pairs: Sequence[Ids]) -> Tensor:
        """Scores in the given order."""
        with autocast(self._precision, self.pretrained.device):
            key = reading_order(family_of(self.pretrained).score_kind)
            return grouped(pairs, lambda each: score(self.pretrained, each, self._tokens), self.pretrained.device, key)

    def new_head(self) -> Sequence[nn.Module]:
        """Modules that begin untrained."""
        return family_of(self.pretrained).head(self.pretrained) if self._new_head else ()


class Comparison:
    """A loss per list, over the logits or, with a similarity weight, over the final scores that a search ranks by."""

    def __init__(self, texts: RerankerTexts, settings: TrainSettings, first_stage: Nearness | None = None) -> None:
        self._texts = texts
        self._chunk_size = settings.chunk_size
        self._loss = _LOSSES[settings.loss]
        self._weight = settings.similarity_weight
        self._first_stage = first_stage

    def num_tokens(self, rows: Sequence[Listing]) -> int:
        """Of all framed pairs."""
        return sum(len(pair) for row in rows for pair in self._texts.pairs(row))

    def backward(self, model: nn.Module, rows: Sequence[Listing], synchronise: Synchronise) -> Tensor:
        """One step; lists do not see each other, so a chunk of them at a time gives the same gradients."""
        total = 0.0
        chunks = list(self._chunks(rows))
        for number, chunk in enumerate(chunks, 1):
            pairs = [pair for row in chunk for pair in self._texts.pairs(row)]
            with synchronise(number == len(chunks)):
                scores = torch.split(model(pairs), [len(row.skills) for row in chunk])
                losses = [
                    self._loss(logits + self._prior(row, logits)) for row, logits in zip(chunk, scores, strict=True)
                ]
                loss = torch.stack(losses).sum() / len(rows)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return torch.tensor(total, device=next(model.parameters()).device)

    def _prior(self, row: Listing, logits: Tensor) -> Tensor | float:
        """What the first stage adds to the logits of a list."""
        if self._first_stage is None:
            return 0.0
        return self._weight * torch.from_numpy(self._first_stage.to_request(row.request, row.skills)).to(logits)

    def _chunks(self, rows: Sequence[Listing]) -> list[Sequence[Listing]]:
        size = max(1, self._chunk_size // len(rows[0].skills)) if self._chunk_size else len(rows)
        return [rows[start : start + size] for start in range(0, len(rows), size)]
