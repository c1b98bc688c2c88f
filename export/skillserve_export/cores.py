"""The operations that look at sequences: attention inside each one, the mean over each one, one compared with another.

In torch they are opaque operations, so the exporter writes one node each (`SegmentAttention`, `BandedSegmentAttention`,
`SegmentMean`, `SegmentMaxSim`, all of the domain `skillserve`) and cannot get them wrong. Their bodies are ONNX
functions (`bodies`); the export attaches those that suit the device and inlines them, so the finished graph holds
standard operators only.

    loop     visits one sequence after the other; no token is ever padded. Best on CPU.
    gather   copies queries, keys and values into `[S, L, H]`, attends under a mask, copies back. Few large
             kernels instead of many small ones: for GPUs, and for runtimes that compile static loops badly.

Two kinds of attention, since a mask costs: every token attends to all of its sequence (BERT), or to a band around
itself, which may reach back to the beginning (causal) or to both sides (local), with fewer key heads than query heads.

Shape legend: S sequences, T tokens, H hidden size, N query heads, K key heads, D head dimension, L longest sequence,
P pairs of sequences.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from skillserve_export.bodies import DOMAIN, gather, loop, spans

if TYPE_CHECKING:
    from onnx import FunctionProto

__all__ = [
    "CAUSAL",
    "AttentionCore",
    "Band",
    "Heads",
    "banded_attention",
    "core_functions",
    "segment_attention",
    "segment_max_sim",
    "segment_mean",
]

AttentionCore = Literal["loop", "gather"]

_LEAST_WEIGHT = 1e-6
"""What a stretch without any weight is divided by; the bodies have it too."""


class Heads(NamedTuple):
    """Attention heads; each key head serves as many query heads as there are to one."""

    query: int
    key: int


class Band(NamedTuple):
    """How many places a token sees before and after itself."""

    before: int
    after: int


CAUSAL = Band(before=2**31 - 1, after=0)
"""A token sees all that stand before it, however many, and none behind it."""


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, num_heads: int) -> Tensor:
        edges = bounds.tolist()
        parts = []
        for start, end in pairwise(edges):
            q, k, v = (x[start:end].reshape(end - start, num_heads, -1).transpose(0, 1) for x in (query, key, value))
            parts.append(functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
        return torch.cat(parts)

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, bounds: Any, num_heads: int) -> Any:
        node = g.op(f"{DOMAIN}::SegmentAttention", query, key, value, bounds, num_heads_i=num_heads)
        return node.setType(query.type())


class _BandedSegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        _ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, heads: Heads, band: Band
    ) -> Tensor:
        parts = []
        for start, end in pairwise(bounds.tolist()):
            q, k, v = (
                x[start:end].reshape(end - start, num_heads, -1).transpose(0, 1)
                for x, num_heads in ((query, heads.query), (key, heads.key), (value, heads.key))
            )
            k, v = (x.repeat_interleave(heads.query // heads.key, 0) for x in (k, v))
            place = torch.arange(end - start)
            offset = place - place[:, None]
            seen = (offset >= -band.before) & (offset <= band.after)
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            parts.append(mixed.transpose(0, 1).flatten(1))
        return torch.cat(parts)

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, bounds: Any, heads: Heads, band: Band) -> Any:
        node = g.op(
            f"{DOMAIN}::BandedSegmentAttention",
            *(query, key, value, bounds),
            num_heads_i=heads.query,
            num_kv_heads_i=heads.key,
            before_i=band.before,
            after_i=band.after,
        )
        return node.setType(query.type())


class _SegmentMean(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, hidden: Tensor, bounds: Tensor) -> Tensor:
        edges = bounds.tolist()
        return torch.stack([hidden[start:end].mean(0) for start, end in pairwise(edges)])

    @staticmethod
    def symbolic(g: Any, hidden: Any, bounds: Any) -> Any:
        # Not the type of `hidden`: its first dimension is tokens, this one's is sequences.
        return g.op(f"{DOMAIN}::SegmentMean", hidden, bounds).setType(hidden.type().with_sizes([None, None]))


class _SegmentMaxSim(torch.autograd.Function):
    @staticmethod
    def forward(
        _ctx: Any, states: Tensor, weights: Tensor, bounds: Tensor, requests: Tensor, skills: Tensor, window: int
    ) -> Tensor:
        edges = bounds.tolist()
        rows = []
        for request, skill in zip(requests.tolist(), skills.tolist(), strict=True):
            asks, offers = (slice(edges[side], edges[side + 1]) for side in (request, skill))
            cosines = (states[asks] @ states[offers].T).masked_fill(weights[offers] <= 0, -1.0)
            room = max(window - len(cosines), 0)
            both = torch.stack([cosines.amax(1) * weights[asks], weights[asks]])
            nearest, weight = functional.avg_pool1d(functional.pad(both, (0, room)), window, stride=1)
            rows.append((nearest / weight.clamp(min=_LEAST_WEIGHT)).amax())
        return torch.stack(rows)

    @staticmethod
    def symbolic(g: Any, states: Any, weights: Any, bounds: Any, requests: Any, skills: Any, window: int) -> Any:
        node = g.op(f"{DOMAIN}::SegmentMaxSim", states, weights, bounds, requests, skills, window_i=[window])
        return node.setType(weights.type().with_sizes([None]))


def segment_attention(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, num_heads: int) -> Tensor:
    """Softmax attention inside each sequence: `[T, H]` three times and `bounds [S + 1]` → `[T, H]`."""
    result: Tensor = _SegmentAttention.apply(query, key, value, bounds, num_heads)  # type: ignore[no-untyped-call]
    return result


def banded_attention(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, heads: Heads, band: Band) -> Tensor:
    """Softmax attention inside a band of each sequence: `[T, N·D]`, `[T, K·D]` twice, `bounds [S + 1]` → `[T, N·D]`."""
    result: Tensor = _BandedSegmentAttention.apply(query, key, value, bounds, heads, band)  # type: ignore[no-untyped-call]
    return result


def segment_mean(hidden: Tensor, bounds: Tensor) -> Tensor:
    """Mean of the tokens of each sequence: `[T, H]` and `bounds [S + 1]` → `[S, H]`."""
    result: Tensor = _SegmentMean.apply(hidden, bounds)  # type: ignore[no-untyped-call]
    return result


def segment_max_sim(
    states: Tensor, weights: Tensor, bounds: Tensor, requests: Tensor, skills: Tensor, window: int
) -> Tensor:
    """How near the tokens of one sequence come to those of another: the best stretch of `window` neighbours.

    `states [T, H]` of length 1, `weights [T]`, `bounds [S + 1]`, and the pairs of sequences `[P]` twice → `[P]` in
    [-1, 1]. Both sequences of a pair have tokens. Each of the first looks for the nearest one of the second that weighs
    something; the mean of that over a stretch is weighted. A sequence shorter than the window is one stretch.
    """
    result: Tensor = _SegmentMaxSim.apply(states, weights, bounds, requests, skills, window)  # type: ignore[no-untyped-call]
    return result


def core_functions(core: AttentionCore) -> list[FunctionProto]:
    """The ONNX bodies of the operations for the chosen core, and of what they call."""
    bodies = {
        "loop": (loop.loop_attention, loop.loop_banded_attention, loop.loop_mean, loop.loop_max_sim),
        "gather": (gather.gather_attention, gather.gather_banded_attention, gather.gather_mean, gather.gather_max_sim),
    }[core]
    named = [body.to_function_proto() for body in bodies]
    names = ("SegmentAttention", "BandedSegmentAttention", "SegmentMean", "SegmentMaxSim")
    for function, name in zip(named, names, strict=True):
        function.name = name
    called = (spans.chunk_spans, gather.slots, gather.sequence_slots, gather.home)
    return named + [body.to_function_proto() for body in called]
