"""Pairs whose sides are read apart: where the request ends and the skill begins, and which texts the encoder reads.

A pair is two texts, each behind an opening token: `[CLS] request [SEP] [CLS] skill [SEP]`. It is cut at its first
inner opening token. One that does not begin with an opening token, or has no other one, is malformed: it stays one
text, so that every text has tokens, its row is thrown away, and no other row knows of it.

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
    """Requests and skills in the order in which they came"""
    requests: Tensor
    """`[P]` int64, which of the texts is the request of each pair"""
    skills: Tensor
    """`[P]` int64, which one is its skill; a malformed pair's only text is both"""
    well_formed: Tensor
    """`[P]` bool"""


def pair_layout(layout: PackedLayout, opening: int) -> PairLayout:
    """Cut every sequence in two; sums here are of whole numbers, so no pair depends on another one."""
    ids_T, sequence_T = layout.input_ids, layout.sequence
    starts_P, ends_P = layout.bounds[:-1], layout.bounds[1:]
    opens_T = ids_T == opening
    inner_T = (opens_T & (layout.position > 0)).to(torch.int64)
    so_far_T = torch.cumsum(inner_T, 0)
    so_far_T = so_far_T - (so_far_T - inner_T)[starts_P][sequence_T]
    well_formed_P = opens_T[starts_P] & (sum_between(inner_T, starts_P, ends_P) > 0)
    cut_T = (inner_T > 0) & (so_far_T == 1) & well_formed_P[sequence_T]

    first_T = (layout.position == 0) | cut_T
    skills_P = torch.cumsum(well_formed_P.to(torch.int64) + 1, 0) - 1
    requests_P = skills_P - well_formed_P.to(torch.int64)
    return PairLayout(_texts(ids_T, first_T, layout.sound), requests_P, skills_P, well_formed_P)


def _texts(ids: Tensor, first: Tensor, sound: Tensor) -> PackedLayout:
    """Texts that begin where `first` says."""
    starts = torch.nonzero(first)[:, 0]
    place = torch.cumsum(torch.ones_like(ids), 0) - 1
    bounds = torch.cat([starts, place[-1:] + 1])
    sequence = torch.cumsum(first.to(torch.int64), 0) - 1
    return PackedLayout(ids, bounds[1:] - starts, bounds, sequence, place - starts[sequence], sound)
