"""The core `loop`: one sequence, or one chunk of it, after the other; no token is ever padded.

The loops run in blocks of 64: an insertion copies the list that it inserts into, so one loop over S sequences would
cost S², seconds for a request of many short ones.

Shape legend: S sequences, C chunks, T tokens, H hidden size, N heads, K key heads, G query heads of a key head,
D head dimension, Q queries and M keys of a chunk, L tokens of a sequence, P pairs of sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxscript import FLOAT, INT64, script
from onnxscript import opset17 as op

from skillserve_export.bodies import domain
from skillserve_export.bodies.spans import chunk_spans

__all__ = ["loop_attention", "loop_banded_attention", "loop_max_sim", "loop_mean"]


@script(domain, default_opset=op)
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


@script(domain, default_opset=op)
def loop_banded_attention(
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    bounds: INT64,
    num_heads: int,
    num_kv_heads: int,
    before: int,
    after: int,
) -> FLOAT:
    """Attention to tokens at most `before` places earlier and `after` later: `[T, N·D]`, keys `[T, K·D]`.

    In chunks of queries, so that a long sequence costs neither L² numbers of memory nor work on keys out of reach.
    """
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    before_1 = op.Reshape(op.Constant(value_int=before), one)
    after_1 = op.Reshape(op.Constant(value_int=after), one)
    kv_heads_1 = op.Reshape(op.Constant(value_int=num_kv_heads), one)
    group_1 = op.Div(op.Reshape(op.Constant(value_int=num_heads), one), kv_heads_1)
    hidden_1 = op.Shape(query, start=1, end=2)
    head_dim = op.Div(op.Shape(key, start=1, end=2), kv_heads_1)
    # Query heads of one key head are broadcast against it; keys and values are never repeated.
    split = op.Concat(zero, kv_heads_1, group_1, head_dim, axis=0)
    split_kv = op.Concat(zero, kv_heads_1, one, head_dim, axis=0)
    merge = op.Concat(zero, hidden_1, axis=0)
    scaled = op.Div(query, op.Sqrt(op.CastLike(head_dim, query)))
    forbidden = op.CastLike(op.Constant(value_float=-10000.0), query)
    allowed = op.CastLike(op.Constant(value_float=0.0), query)
    q_starts, q_ends, k_starts, k_ends = chunk_spans(bounds, op.Constant(value_ints=[128]), before_1, after_1)
    num_chunks = op.Squeeze(op.Shape(q_starts))
    block = op.Constant(value_int=64)
    blocks = op.SequenceEmpty()
    for b in range(op.Div(num_chunks + block - op.Constant(value_int=1), block)):
        parts = op.SequenceEmpty()
        for i in range(op.Min(block, num_chunks - b * block)):
            at = op.Reshape(b * block + i, one)
            q_start = op.Gather(q_starts, at, axis=0)
            q_end = op.Gather(q_ends, at, axis=0)
            k_start = op.Gather(k_starts, at, axis=0)
            k_end = op.Gather(k_ends, at, axis=0)
            q = op.Transpose(op.Reshape(op.Slice(scaled, q_start, q_end, zero), split), perm=[1, 2, 0, 3])
            k = op.Transpose(op.Reshape(op.Slice(key, k_start, k_end, zero), split_kv), perm=[1, 2, 3, 0])
            v = op.Transpose(op.Reshape(op.Slice(value, k_start, k_end, zero), split_kv), perm=[1, 2, 0, 3])
            step = op.Constant(value_int=1)
            from_Q = op.Range(op.Squeeze(q_start), op.Squeeze(q_end), step)
            to_M = op.Range(op.Squeeze(k_start), op.Squeeze(k_end), step)
            offset_QM = op.Unsqueeze(to_M, zero) - op.Unsqueeze(from_Q, one)
            outside_QM = op.Or(op.Less(offset_QM, op.Neg(before_1)), op.Greater(offset_QM, after_1))
            weights = op.Softmax(op.MatMul(q, k) + op.Where(outside_QM, forbidden, allowed), axis=-1)
            mixed = op.Reshape(op.Transpose(op.MatMul(weights, v), perm=[2, 0, 1, 3]), merge)
            parts = op.SequenceInsert(parts, mixed)
        blocks = op.SequenceInsert(blocks, op.ConcatFromSequence(parts, axis=0))
    return op.ConcatFromSequence(blocks, axis=0)


@script(domain, default_opset=op)
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


@script(domain, default_opset=op)
def loop_max_sim(
    states: FLOAT, weights: FLOAT, bounds: INT64, requests: INT64, skills: INT64, window: Sequence[int]
) -> FLOAT:
    """The best stretch of each pair, one after the other: `[T, H]`, `[T]`, pairs `[P]` twice → `[P]`."""
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    nothing = op.CastLike(op.Constant(value_float=0.0), states)
    farthest = op.CastLike(op.Constant(value_float=-1.0), states)
    least = op.CastLike(op.Constant(value_float=1e-6), states)
    window_1 = op.Constant(value_ints=window)
    num_pairs = op.Squeeze(op.Shape(requests))
    block = op.Constant(value_int=64)
    blocks = op.SequenceEmpty()
    for b in range(op.Div(num_pairs + block - op.Constant(value_int=1), block)):
        parts = op.SequenceEmpty()
        for i in range(op.Min(block, num_pairs - b * block)):
            at = op.Reshape(b * block + i, one)
            request = op.Gather(requests, at, axis=0)
            skill = op.Gather(skills, at, axis=0)
            q_start = op.Gather(bounds, request, axis=0)
            q_end = op.Gather(bounds, request + one, axis=0)
            k_start = op.Gather(bounds, skill, axis=0)
            k_end = op.Gather(bounds, skill + one, axis=0)
            offered = op.Transpose(op.Slice(states, k_start, k_end, zero), perm=[1, 0])
            cosines = op.MatMul(op.Slice(states, q_start, q_end, zero), offered)
            heard = op.Greater(op.Slice(weights, k_start, k_end, zero), nothing)
            nearest = op.ReduceMax(op.Where(heard, cosines, farthest), axes=[1], keepdims=0)
            weight = op.Slice(weights, q_start, q_end, zero)
            both = op.Concat(op.Unsqueeze(nearest * weight, zero), op.Unsqueeze(weight, zero), axis=0)
            # Padded up to one window. Each stretch is summed on its own: differences of running sums would have
            # the rounding of the whole text.
            room = op.Max(window_1 - (q_end - q_start), zero)
            padded = op.Pad(both, op.Concat(zero, zero, zero, room, axis=0), nothing)
            means = op.AveragePool(op.Unsqueeze(padded, zero), kernel_shape=window)
            total, share = op.Split(means, op.Constant(value_ints=[1, 1]), axis=1)
            best = op.ReduceMax(op.Div(total, op.Max(share, least)), axes=[2], keepdims=0)
            # ReduceMax passes over NaN; one token that overflowed shall not give an ordinary score.
            broken = op.ReduceSum(cosines, keepdims=0) * nothing
            parts = op.SequenceInsert(parts, op.Squeeze(best, zero) + broken)
        blocks = op.SequenceInsert(blocks, op.ConcatFromSequence(parts, axis=0))
    return op.ConcatFromSequence(blocks, axis=0)
