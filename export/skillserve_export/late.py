"""The interfaces around an encoder whose pairs are compared token by token (late interaction, arXiv 2004.12832).

    nearest_q = max over a skill's tokens s that weigh something of cosine(q, s)
    score     = scale · max over stretches of (Σ weight_q · nearest_q / Σ weight_q)

A stretch is `window` neighbours of the request, or all of a shorter one. A token weighs what its id does; the marks
around a text weigh nothing.

    packed    ids [T], lengths [S] → guard → texts of pairs → encoder [T, H] → best stretch [S] → home
    padded    ids and mask [B, L] → encoder under a mask by text [B, L, H] → best stretch [B]
    tokens    ids [T], lengths [S] → guard → encoder [T, H] → rows as long as their tokens weigh [T, H] → home

The last one reads single texts, and scores are made of its rows where they are needed (`skillserve.max_sim`).

Shape legend: S sequences, T tokens, B sequences of length L with padding, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from skillserve.max_sim import Interaction
from skillserve_export.cores import segment_max_sim
from skillserve_export.layout import Limits, packed_layout, rows_home
from skillserve_export.pairs import pair_layout

__all__ = ["LateScore", "PackedLate", "PaddedLate", "TokenEmbedder"]

_LEAST_WEIGHT = 1e-6
"""What a stretch without any weight is divided by."""


class LateScore(NamedTuple):
    """What a score is made with."""

    opening: int
    """Id of the token that each side begins with."""
    window: int
    """Tokens of a stretch."""
    scale: float
    weights: Tensor
    """`[V]` float32, 0 for marks"""

    @property
    def interaction(self) -> Interaction:
        """What is needed to make scores of token embeddings."""
        return Interaction(window=self.window, scale=self.scale)


class PackedLate(nn.Module):
    """The wire contract around an encoder that takes a `PackedLayout`; a malformed pair's row is NaN."""

    weights: Tensor

    def __init__(self, encoder: nn.Module, score: LateScore, limits: Limits, config: Any) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.score = score
        self.limits = limits
        self.register_buffer("weights", score.weights)

    def forward(self, input_ids: Tensor, seq_lens: Tensor, tok_end: Tensor, seq_end: Tensor) -> Tensor:
        """Scores `[S]`."""
        layout = packed_layout(input_ids, seq_lens, tok_end, seq_end, self.limits)
        texts, requests, skills, well_formed = pair_layout(layout, self.score.opening)
        states = functional.normalize(self.encoder(texts), dim=-1)
        weights = self.weights[texts.input_ids]
        best = segment_max_sim(states, weights, texts.bounds, requests, skills, self.score.window)
        return rows_home(_scores(best, self.score.scale, well_formed), layout.sound)


class TokenEmbedder(nn.Module):
    """The wire contract around an encoder of single texts; tokens of malformed requests have rows of NaN."""

    weights: Tensor

    def __init__(self, encoder: nn.Module, weights: Tensor, limits: Limits, config: Any) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.limits = limits
        self.register_buffer("weights", weights)

    def forward(self, input_ids: Tensor, seq_lens: Tensor, tok_end: Tensor, seq_end: Tensor) -> Tensor:
        """Rows `[T, H]`: directions of states, lengths of weights."""
        layout = packed_layout(input_ids, seq_lens, tok_end, seq_end, self.limits)
        states = functional.normalize(self.encoder(layout), dim=-1)
        return rows_home(states * self.weights[layout.input_ids].unsqueeze(-1), layout.sound_tokens)


class PaddedLate(nn.Module):
    """The padded layout around a transformers encoder that takes a mask `[B, L, L]`; a malformed pair's row is NaN."""

    weights: Tensor

    def __init__(self, encoder: nn.Module, score: LateScore, config: Any) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.score = score
        self.register_buffer("weights", score.weights)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores `[B]`."""
        ids_BL, mask_BL = input_ids.to(torch.int64), attention_mask.to(torch.int64)
        place_BL = torch.cumsum(torch.ones_like(ids_BL), 1) - 1
        opens_BL = (ids_BL == self.score.opening).to(torch.int64) * mask_BL
        skill_BL = (torch.cumsum(opens_BL * (place_BL > 0), 1) > 0).to(torch.int64) * mask_BL
        lens_B1 = (mask_BL - skill_BL).sum(1, keepdim=True)
        # Request 1, skill 2, padding 0: a token sees those of its own kind.
        text_BL = mask_BL + skill_BL
        seen_BLL = (text_BL[:, :, None] == text_BL[:, None]).to(torch.int64)
        position_BL = (place_BL - lens_B1 * skill_BL) * mask_BL
        hidden = self.encoder(
            input_ids=ids_BL,
            attention_mask=seen_BLL,
            token_type_ids=torch.zeros_like(ids_BL),
            position_ids=position_BL,
        )
        states_BLH = functional.normalize(hidden.last_hidden_state, dim=-1)
        best_B = self._best_stretch(states_BLH, ids_BL, text_BL, lens_B1)
        # ONNX Runtime's ReduceMax passes over NaN; one token that overflowed shall not give an ordinary score.
        best_B = best_B + 0 * torch.where(mask_BL > 0, states_BLH.sum(2), torch.zeros_like(states_BLH[:, :, 0])).sum(1)
        well_formed_B = (opens_BL[:, 0] > 0) & (skill_BL.sum(1) > 0)
        return _scores(best_B, self.score.scale, well_formed_B)

    def _best_stretch(self, states_BLH: Tensor, ids_BL: Tensor, text_BL: Tensor, lens_B1: Tensor) -> Tensor:
        weights_BL = self.weights[ids_BL]
        heard_BL = (weights_BL > 0) & (text_BL == 2)
        cosines_BLL = states_BLH @ states_BLH.transpose(1, 2)
        nearest_BL = torch.where(heard_BL[:, None], cosines_BLL, torch.full_like(cosines_BLL, -1.0)).amax(2)
        weights_BL = weights_BL * (text_BL == 1)
        window = self.score.window
        # One window of nothing behind each text, so that the shortest has a stretch; those that begin too late to be
        # whole are left out.
        both_B2L = functional.pad(torch.stack([nearest_BL * weights_BL, weights_BL], 1), (0, window))
        means = functional.avg_pool1d(both_B2L, window, stride=1)
        stretch_BL = means[:, 0] / means[:, 1].clamp(min=_LEAST_WEIGHT)
        start_BL = torch.cumsum(torch.ones_like(stretch_BL, dtype=torch.int64), 1) - 1
        whole_BL = start_BL <= (lens_B1 - window).clamp(min=0)
        return torch.where(whole_BL, stretch_BL, torch.full_like(stretch_BL, -2.0)).amax(1)


def _scores(best: Tensor, scale: float, well_formed: Tensor) -> Tensor:
    return torch.where(well_formed, scale * best, torch.full_like(best, float("nan")))
