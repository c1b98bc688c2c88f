"""Where every token of a packed batch belongs, and the guard that keeps malformed requests apart.

Shape legend: R requests, S sequences, T tokens of the whole batch; `_k` marks what is kept by the guard.

The guard trusts only `tok_end` and `seq_end`, which the server derives from request shapes. A request is
sound when it is not empty, no empty request stands before it (the server stops copying tensors there, so
what follows is uninitialised memory), it brings at most max_request_tokens, its lengths are in [1, max_tokens]
and sum to its tokens, and its ids are in [0, vocab_size). The tokens of the others are dropped before the
first layer sees them; their rows come back as NaN.

Written in plain torch operations that trace into standard ONNX ones. Not `index_add_` and not `bincount`:
both torch exporters turn the first into a silently wrong graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Limits", "PackedLayout", "packed_layout", "rows_home", "sum_between"]


class PackedLayout(NamedTuple):
    """The sound part of a batch; never empty, a batch without sound requests keeps one filler token."""

    input_ids: Tensor
    """`[T_k]` int64"""
    lens: Tensor
    """`[S_k]` int64, tokens of each sequence"""
    bounds: Tensor
    """`[S_k + 1]` int64, sequence s owns the tokens `bounds[s] : bounds[s + 1]`"""
    sequence: Tensor
    """`[T_k]` int64, the sequence of each token"""
    position: Tensor
    """`[T_k]` int64, the place of each token in its sequence"""
    sound: Tensor
    """`[S]` bool, which of the sequences that came in were kept"""
    sound_tokens: Tensor
    """`[T]` bool, which of the tokens"""


class Limits(NamedTuple):
    """What a sound request keeps to."""

    vocab_size: int
    """Ids are below this."""
    max_tokens: int
    """Longest sequence."""
    max_request_tokens: int
    """Most tokens of one request; memory is bounded by it."""


def packed_layout(
    input_ids: Tensor, seq_lens: Tensor, tok_end: Tensor, seq_end: Tensor, limits: Limits
) -> PackedLayout:
    """Check every request, drop the malformed ones, lay out the rest.

    `input_ids [T]`, `seq_lens [S]`, `tok_end [R]`, `seq_end [R]`, any integer type.
    """
    # int64: sums of forged 32-bit lengths must not wrap around.
    ids_T, lens_S, tok_end_R, seq_end_R = (x.to(torch.int64) for x in (input_ids, seq_lens, tok_end, seq_end))
    tok_start_R, seq_start_R = _starts(tok_end_R), _starts(seq_end_R)

    empty_R = (tok_end_R <= tok_start_R) | (seq_end_R <= seq_start_R)
    none_empty_so_far_R = torch.cumsum(empty_R.to(torch.int64), 0) == 0
    tokens_R = tok_end_R - tok_start_R
    sums_match_R = sum_between(lens_S, seq_start_R, seq_end_R) == tokens_R
    small_R = tokens_R <= limits.max_request_tokens
    bad_lens_R = sum_between(((lens_S < 1) | (lens_S > limits.max_tokens)).to(torch.int64), seq_start_R, seq_end_R)
    bad_ids_R = sum_between(((ids_T < 0) | (ids_T >= limits.vocab_size)).to(torch.int64), tok_start_R, tok_end_R)
    sound_R = none_empty_so_far_R & small_R & sums_match_R & (bad_lens_R == 0) & (bad_ids_R == 0)

    sound_S = sound_R[_owner(lens_S, seq_end_R)]
    sound_T = sound_R[_owner(ids_T, tok_end_R)]
    ids_k = ids_T[sound_T]
    lens_k = lens_S[sound_S]

    # One token stands in when nothing is sound, since kernels differ in what they do with zero rows.
    # `nonzero` of a one-element comparison has one row or none, and its value is the index 0.
    filler = torch.nonzero(torch.sum(lens_k, dim=0, keepdim=True) == 0)[:, 0]
    ids_k = torch.cat([ids_k, filler])
    lens_k = torch.cat([lens_k, filler + 1])

    bounds = torch.cat([torch.zeros_like(lens_k[:1]), torch.cumsum(lens_k, 0)])
    starts_k = bounds[:-1]
    first_k = torch.zeros_like(ids_k).scatter(0, starts_k, torch.ones_like(starts_k))
    sequence = torch.cumsum(first_k, 0) - 1
    position = torch.cumsum(torch.ones_like(ids_k), 0) - 1 - starts_k[sequence]
    return PackedLayout(ids_k, lens_k, bounds, sequence, position, sound_S, sound_T)


def rows_home(rows: Tensor, sound: Tensor) -> Tensor:
    """Put the rows `[S_k, …]` of the sound sequences back among all S, or of sound tokens; the others become NaN."""
    source_S = torch.clamp(torch.cumsum(sound.to(torch.int64), 0) - 1, min=0)
    home = rows[source_S]
    mask = sound if rows.dim() == 1 else sound.unsqueeze(-1)
    return torch.where(mask, home, torch.full_like(home, float("nan")))


def sum_between(values: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Sums of whole numbers `[T]` over the stretches `start : end`, exact: `[R]` twice → `[R]`."""
    running = torch.cat([torch.zeros_like(end[:1]), torch.cumsum(values, 0)])
    return running[end] - running[start]


def _starts(ends: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])


def _owner(items: Tensor, end_R: Tensor) -> Tensor:
    """The request of each item: how many requests end at or before it."""
    place = torch.cumsum(torch.ones_like(items), 0) - 1
    return torch.sum((end_R.unsqueeze(0) <= place.unsqueeze(1)).to(torch.int64), dim=1)
