"""Late interaction: two texts are read apart, and each token of a request looks for the nearest token of a skill.

After ColBERT (arXiv 2004.12832), with two changes for requests that are long and noisy. Tokens count by how rare they
are among skills, so that filler counts little. And of a request the stretch of `window` tokens that suits a skill
best counts, since a request may ask for several things, of which a skill fits one.

    nearest_q = max over a skill's tokens s of cosine(q, s)
    score     = scale · max over stretches of (Σ weight_q · nearest_q / Σ weight_q)

A token that weighs nothing, such as [CLS] and [SEP], takes part on neither side.

Shape legend: B pairs, U distinct requests, Q tokens of the longest request, K of the longest skill, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel, BertPreTrainedModel

from skillserve.pairs import Remembered
from skillserve.tensors import Ids

__all__ = ["LateBertConfig", "LateBertModel", "best_stretch", "rarity"]

_LEAST_WEIGHT = 0.05
"""Of a token that stands in every skill."""

_LEAST_MEAN = 1e-6
"""What a stretch without any weight is divided by."""


class LateBertConfig(BertConfig):  # type: ignore[misc]
    """BERT's, and how scores are made."""

    model_type: ClassVar[str] = "late-bert"

    def __init__(self, window: int = 32, scale: float = 20.0, **others: object) -> None:
        others.pop("model_type", None)  # that of a base which is made into one of these
        super().__init__(**others)
        self.window = window
        self.scale = scale


class LateBertModel(BertPreTrainedModel):  # type: ignore[misc]
    """A BERT that reads either side of a pair, and a weight for each token id."""

    config_class = LateBertConfig

    def __init__(self, config: LateBertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.token_weights = nn.Parameter(torch.ones(config.vocab_size), requires_grad=False)
        self.remembered: Remembered[Tensor] | None = None
        """Unit states of texts that were read, `[length, H]`; None: every text is read anew."""
        self.post_init()

    def forward(self, requests: Sequence[Tensor], skills: Sequence[Tensor]) -> Tensor:
        """Scores `[B]` float32 of framed requests and skills, ids `[length]` each; equal requests are read once."""
        distinct = {tuple(request.tolist()): request for request in requests}
        at = {request: place for place, request in enumerate(distinct)}
        places = [at[tuple(request.tolist())] for request in requests]
        states_UQH, weights_UQ = self._read(list(distinct.values()))
        states_BKH, weights_BK = self._read(skills)
        cosines_BQK = states_UQH[places] @ states_BKH.transpose(1, 2)
        nearest_BQ = cosines_BQK.float().masked_fill((weights_BK <= 0)[:, None], -1.0).amax(-1)
        lens_B = torch.tensor([len(request) for request in requests], device=nearest_BQ.device)
        scores: Tensor = self.config.scale * best_stretch(nearest_BQ, weights_UQ[places], lens_B, self.config.window)
        return scores

    def _read(self, texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Unit states of all tokens, and their weights, which are 0 on padding."""
        ids, mask = _padded(texts)
        states = self._states(ids, mask) if self.remembered is None else self._recalled(texts, self.remembered)
        return states, self.token_weights[ids] * mask

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        return functional.normalize(hidden, dim=-1)

    def _recalled(self, texts: Sequence[Tensor], remembered: Remembered[Tensor]) -> Tensor:
        """States of texts, of which only those are read that were not read before."""

        def read(places: list[int]) -> list[Tensor]:
            new = [texts[place] for place in places]
            states = self._states(*_padded(new))
            return [rows[: len(text)].clone() for text, rows in zip(new, states, strict=True)]

        keys = [text.cpu().numpy().tobytes() for text in texts]
        return pad_sequence(remembered.recall(keys, read), batch_first=True)


def _padded(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids and mask."""
    ids = pad_sequence(list(texts), batch_first=True)
    return ids, pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)


def best_stretch(nearest: Tensor, weights: Tensor, lens: Tensor, window: int) -> Tensor:
    """The largest weighted mean of `window` neighbours: `[B, Q]` twice and `lens [B]` → `[B]`; padding weighs nothing.

    A text of fewer tokens is one stretch. No other stretch is shorter: a few last words are no job of their own.
    """
    # Each stretch is summed on its own: differences of running sums would have the rounding of the whole text.
    sums_B2Q = functional.pad(torch.stack([nearest * weights, weights], 1), (0, window))
    total, weight = functional.avg_pool1d(sums_B2Q, window, stride=1).unbind(1)
    start_Q = torch.arange(total.shape[1], device=total.device)
    inside_BQ = start_Q <= (lens - window).clamp(min=0)[:, None]
    best: Tensor = (total / weight.clamp(min=_LEAST_MEAN)).masked_fill(~inside_BQ, -torch.inf).amax(1)
    return best


def rarity(skills: Sequence[Ids], vocab_size: int, marks: Sequence[int]) -> Tensor:
    """A weight for each token id, `[vocab_size]`: the logarithm of how few skills hold it; `marks` weigh nothing."""
    holders = torch.zeros(vocab_size)
    for skill in skills:
        holders[torch.from_numpy(np.unique(skill)).long()] += 1
    weights = torch.log((len(skills) + 1) / (holders + 0.5)).clamp(min=_LEAST_WEIGHT)
    weights[list(marks)] = 0
    return weights
