"""The bodies of the two packed operations, as ONNX functions of opset 17; `cores` says when each is used.

onnxscript compiles the source of these functions, they are never run as Python. Its subset of the language knows
ONNX's operators only, hence the explicit constants, and types that mypy cannot follow (excepted in pyproject.toml).

The loops run in blocks of 64 sequences: an insertion copies the list that it inserts into, so one loop over S
sequences would cost S², seconds for a request of many short ones.

Shape legend: S sequences, T tokens, H hidden size, L longest sequence, N heads.
"""

from __future__ import annotations

from onnxscript import FLOAT, INT64, script
from onnxscript import opset17 as op
from onnxscript.values import Opset

__all__ = ["DOMAIN", "OPSET", "gather_attention", "gather_mean", "loop_attention", "loop_mean", "slots"]

DOMAIN = "skillserve"
OPSET = 17
"""The newest operator set that every ONNX Runtime since Triton 24.10 reads, at IR version 8."""

_domain = Opset(DOMAIN, 1)


@script(_domain, default_opset=op)
def loop_attention(query: FLOAT, key: FLOAT, value: FLOAT, bounds: INT64, num_heads: int) -> FLOAT:
    """Softmax attention, one sequence after the other: `[T, H]` → `[T, H]`."""
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    heads_1 = op.Reshape(op.Constant(value_int=num_heads), one)
    hidden_1 = op.Shape(query, start=1, end=2)
    head_dim = op.Div(hidden_1, heads_1)
    split = op.Concat(zero, heads_1, head_dim, axis=0)
    merge = op.Concat(zero, hidden_1, axis=0)
    # Scaling the queries once costs T·H multiplications; scaling the scores would cost T·L·N.
    scaled = op.Div(query, op.Sqrt(op.CastLike(head_dim, query)))
    num_sequences = op.Squeeze(op.Shape(bounds) - one)
    block = op.Constant(value_int=64)
    blocks = op.SequenceEmpty()
    for b in range(op.Div(num_sequences + block - op.Constant(value_int=1), block)):
        parts = op.SequenceEmpty()
        for i in range(op.Min(block, num_sequences - b * block)):
            at = op.Reshape(b * block + i, one)
            start = op.Gather(bounds, at, axis=0)
            end = op.Gather(bounds, at + one, axis=0)
            q = op.Transpose(op.Reshape(op.Slice(scaled, start, end, zero), split), perm=[1, 0, 2])
            k = op.Transpose(op.Reshape(op.Slice(key, start, end, zero), split), perm=[1, 2, 0])
            v = op.Transpose(op.Reshape(op.Slice(value, start, end, zero), split), perm=[1, 0, 2])
            weights = op.Softmax(op.MatMul(q, k), axis=-1)
            mixed = op.Reshape(op.Transpose(op.MatMul(weights, v), perm=[1, 0, 2]), merge)
            parts = op.SequenceInsert(parts, mixed)
        blocks = op.SequenceInsert(blocks, op.ConcatFromSequence(parts, axis=0))
    return op.ConcatFromSequence(blocks, axis=0)


@script(_domain, default_opset=op)
def loop_mean(hidden: FLOAT, bounds: INT64) -> FLOAT:
    """Mean of each sequence, one after the other: `[T, H]` → `[S, H]`."""
    # Neither ScatterND with reduction="add" (ONNX Runtime adds duplicates from several threads without a
    # lock: wrong by 1e-2, now and then), nor a product with a one-hot matrix (0 · NaN = NaN would carry one
    # sequence's overflow to its neighbours, and the matrix grows with S · T).
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    num_sequences = op.Squeeze(op.Shape(bounds) - one)
    block = op.Constant(value_int=64)
    blocks = op.SequenceEmpty()
    for b in range(op.Div(num_sequences + block - op.Constant(value_int=1), block)):
        means = op.SequenceEmpty()
        for i in range(op.Min(block, num_sequences - b * block)):
            at = op.Reshape(b * block + i, one)
            start = op.Gather(bounds, at, axis=0)
            end = op.Gather(bounds, at + one, axis=0)
            mean = op.ReduceMean(op.Slice(hidden, start, end, zero), axes=[0], keepdims=1)
            means = op.SequenceInsert(means, mean)
        blocks = op.SequenceInsert(blocks, op.ConcatFromSequence(means, axis=0))
    return op.ConcatFromSequence(blocks, axis=0)


@script(_domain, default_opset=op)
def slots(bounds: INT64):  # type: ignore[no-untyped-def]
    """Lay sequences out as `[S, L]` slots: the token that each slot reads, and whether the slot is real."""
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    starts = op.Slice(bounds, zero, op.Constant(value_ints=[-1]))
    lens = op.Slice(bounds, one, op.Shape(bounds)) - starts
    longest = op.ReduceMax(lens, keepdims=0)
    place = op.Unsqueeze(op.Range(op.Constant(value_int=0), longest, op.Constant(value_int=1)), zero)
    real = op.Less(place, op.Unsqueeze(lens, one))
    # Slots of padding read token 0: a finite number that the mask then takes out.
    token = op.Where(real, place + op.Unsqueeze(starts, one), zero)
    return token, real


@script(_domain, default_opset=op)
def gather_attention(query: FLOAT, key: FLOAT, value: FLOAT, bounds: INT64, num_heads: int) -> FLOAT:
    """Softmax attention over padded copies `[S, L, H]`: `[T, H]` → `[T, H]`."""
    one = op.Constant(value_ints=[1])
    heads_1 = op.Reshape(op.Constant(value_int=num_heads), one)
    hidden_1 = op.Shape(query, start=1, end=2)
    head_dim = op.Div(hidden_1, heads_1)
    token, real = slots(bounds)
    split = op.Concat(op.Shape(token), heads_1, head_dim, axis=0)
    merge = op.Concat(op.Constant(value_ints=[-1]), hidden_1, axis=0)
    scaled = op.Div(query, op.Sqrt(op.CastLike(head_dim, query)))
    q = op.Transpose(op.Reshape(op.Gather(scaled, token, axis=0), split), perm=[0, 2, 1, 3])
    k = op.Transpose(op.Reshape(op.Gather(key, token, axis=0), split), perm=[0, 2, 3, 1])
    v = op.Transpose(op.Reshape(op.Gather(value, token, axis=0), split), perm=[0, 2, 1, 3])
    forbidden = op.CastLike(op.Constant(value_float=-10000.0), query)
    allowed = op.CastLike(op.Constant(value_float=0.0), query)
    bias = op.Unsqueeze(op.Where(real, allowed, forbidden), op.Constant(value_ints=[1, 2]))
    weights = op.Softmax(op.MatMul(q, k) + bias, axis=-1)
    mixed = op.Reshape(op.Transpose(op.MatMul(weights, v), perm=[0, 2, 1, 3]), merge)
    # Back to tokens: the flat places of the real slots are in token order.
    places = op.NonZero(op.Reshape(real, op.Constant(value_ints=[-1])))
    return op.Gather(mixed, op.Squeeze(places, op.Constant(value_ints=[0])), axis=0)


@script(_domain, default_opset=op)
def gather_mean(hidden: FLOAT, bounds: INT64) -> FLOAT:
    """Mean of each sequence over a padded copy: `[T, H]` → `[S, H]`."""
    token, real = slots(bounds)
    nothing = op.CastLike(op.Constant(value_float=0.0), hidden)
    # Selected, not multiplied by 0: see loop_mean.
    kept = op.Where(op.Unsqueeze(real, op.Constant(value_ints=[2])), op.Gather(hidden, token, axis=0), nothing)
    total = op.ReduceSum(kept, op.Constant(value_ints=[1]), keepdims=0)
    lens = op.ReduceSum(op.CastLike(real, hidden), op.Constant(value_ints=[1]), keepdims=1)
    return op.Div(total, lens)
