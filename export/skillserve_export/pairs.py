"""Pairs whose sides are read apart: where the request ends and the skill begins, and which texts the encoder reads.

A pair is two texts, each behind an opening token: `[CLS] request [SEP] [CLS] skill [SEP]`. It is cut at its first
inner opening token. One that does not begin with an opening token, or has no other one, is malformed: it stays one
text, so that every text has tokens, its row is thrown away, and no other row knows of it.

A request is read once for all of its candidates: where a pair has the request of the pair before it, token by token,
its own is dropped, and it is compared by the states of the other. Equal texts have equal states, so nothing changes but
the work.

Shape legend: T tokens of the whole batch, P pairs, all of them kept by the guard.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from skillserve_export.layout import PackedLayout, sum_between

__all__ = ["PairLayout", "pair_layout"]


class PairLayout(NamedTuple):
    """The sides of pairs as sequences of their own."""

    texts: PackedLayout
    """Requests and skills in the order in which they came, a request that comes again left out"""
    requests: Tensor
    """`[P]` int64, which of the texts is the request of each pair"""
    skills: Tensor
    """`[P]` int64, which one is its skill; a malformed pair's only text is both"""
    well_formed: Tensor
    """`[P]` bool"""


def pair_layout(layout: PackedLayout, opening: int) -> PairLayout:
    """Cut every sequence in two; sums here are of whole numbers, so no pair depends on another one."""
    starts_P, ends_P = layout.bounds[:-1], layout.bounds[1:]
    opens_T = layout.input_ids == opening
    inner_T = (opens_T & (layout.position > 0)).to(torch.int64)
    so_far_T = torch.cumsum(inner_T, 0)
    so_far_T = so_far_T - (so_far_T - inner_T)[starts_P][layout.sequence]
    well_formed_P = opens_T[starts_P] & (sum_between(inner_T, starts_P, ends_P) > 0)
    of_skill_T = (so_far_T > 0) & well_formed_P[layout.sequence]
    cut_T = (inner_T > 0) & (so_far_T == 1) & of_skill_T

    again_P = _asked_again(layout, of_skill_T, well_formed_P)
    kept_T = of_skill_T | ~again_P[layout.sequence]
    first_T = (layout.position == 0) | cut_T
    texts = _texts(layout.input_ids[kept_T], first_T[kept_T], layout)

    num_texts_P = 1 + well_formed_P.to(torch.int64) - again_P.to(torch.int64)
    behind_P = torch.cumsum(num_texts_P, 0)
    # A request that came again stands where the last one that did not does.
    fresh_P = ~again_P
    own_P = (behind_P - num_texts_P)[torch.nonzero(fresh_P)[:, 0]]
    requests_P = own_P[torch.cumsum(fresh_P.to(torch.int64), 0) - 1]
    return PairLayout(texts, requests_P, behind_P - 1, well_formed_P)


def _asked_again(layout: PackedLayout, of_skill_T: Tensor, well_formed_P: Tensor) -> Tensor:
    """Whose request is that of the pair before: `[P]` bool, never the first."""
    starts_P, ends_P = layout.bounds[:-1], layout.bounds[1:]
    of_request_T = ~of_skill_T
    lens_P = sum_between(of_request_T.to(torch.int64), starts_P, ends_P)
    # No request has no tokens, so in front of the first pair there is none alike.
    lens_before_P = torch.cat([torch.zeros_like(lens_P[:1]), lens_P[:-1]])
    well_formed_before_P = torch.cat([well_formed_P[:1], well_formed_P[:-1]])
    # The token at the same place of the pair before; where that is shorter any other one, and lengths tell them apart.
    back_P = starts_P - torch.cat([starts_P[:1], starts_P[:-1]])
    place_T = torch.cumsum(torch.ones_like(layout.input_ids), 0) - 1
    twin_T = layout.input_ids[place_T - back_P[layout.sequence]]
    differs_T = (of_request_T & (layout.input_ids != twin_T)).to(torch.int64)
    alike_P = (lens_P == lens_before_P) & (sum_between(differs_T, starts_P, ends_P) == 0)
    return alike_P & well_formed_P & well_formed_before_P


def _texts(ids: Tensor, first: Tensor, layout: PackedLayout) -> PackedLayout:
    """Texts that begin where `first` says."""
    starts = torch.nonzero(first)[:, 0]
    place = torch.cumsum(torch.ones_like(ids), 0) - 1
    bounds = torch.cat([starts, place[-1:] + 1])
    sequence = torch.cumsum(first.to(torch.int64), 0) - 1
    position = place - starts[sequence]
    return PackedLayout(ids, bounds[1:] - starts, bounds, sequence, position, layout.sound, layout.sound_tokens)
