"""The two operations that look at sequences: attention inside each one, and the mean over each one.

In torch they are opaque operations, so the exporter writes one node each (`skillserve::SegmentAttention`,
`skillserve::SegmentMean`) and cannot get them wrong. Their bodies are ONNX functions (`onnx_functions`); the
export attaches those that suit the device and inlines them, so the finished graph holds standard operators only.

    loop     visits one sequence after the other; no token is ever padded. Best on CPU.
    gather   copies queries, keys and values into `[S, L, H]`, attends under a mask, copies back. Few large
             kernels instead of many small ones: for GPUs, and for runtimes that compile static loops badly.

Shape legend: S sequences, T tokens, H hidden size, L longest sequence.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from skillserve_export import onnx_functions
from skillserve_export.onnx_functions import DOMAIN

if TYPE_CHECKING:
    from onnx import FunctionProto

__all__ = ["AttentionCore", "core_functions", "segment_attention", "segment_mean"]

AttentionCore = Literal["loop", "gather"]


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


class _SegmentMean(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, hidden: Tensor, bounds: Tensor) -> Tensor:
        edges = bounds.tolist()
        return torch.stack([hidden[start:end].mean(0) for start, end in pairwise(edges)])

    @staticmethod
    def symbolic(g: Any, hidden: Any, bounds: Any) -> Any:
        # Not the type of `hidden`: its first dimension is tokens, this one's is sequences.
        return g.op(f"{DOMAIN}::SegmentMean", hidden, bounds).setType(hidden.type().with_sizes([None, None]))


def segment_attention(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, num_heads: int) -> Tensor:
    """Softmax attention inside each sequence: `[T, H]` three times and `bounds [S + 1]` → `[T, H]`."""
    result: Tensor = _SegmentAttention.apply(query, key, value, bounds, num_heads)  # type: ignore[no-untyped-call]
    return result


def segment_mean(hidden: Tensor, bounds: Tensor) -> Tensor:
    """Mean of the tokens of each sequence: `[T, H]` and `bounds [S + 1]` → `[S, H]`."""
    result: Tensor = _SegmentMean.apply(hidden, bounds)  # type: ignore[no-untyped-call]
    return result


def core_functions(core: AttentionCore) -> list[FunctionProto]:
    """The ONNX bodies of both operations for the chosen core, and of what they call."""
    if core == "loop":
        bodies = {"SegmentAttention": onnx_functions.loop_attention, "SegmentMean": onnx_functions.loop_mean}
        functions = []
    else:
        bodies = {"SegmentAttention": onnx_functions.gather_attention, "SegmentMean": onnx_functions.gather_mean}
        functions = [onnx_functions.slots.to_function_proto()]
    for name, body in bodies.items():
        function = body.to_function_proto()
        function.name = name
        functions.append(function)
    return functions
