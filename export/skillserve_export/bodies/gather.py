"""The core `gather`: padded copies, in few large kernels, and back.

Shape legend: S sequences, C chunks, T tokens, H hidden size, N heads, K key heads, G query heads of a key head,
D head dimension, L longest sequence, Q most queries and M most keys of a chunk, P pairs of sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxscript import BOOL, FLOAT, INT64, script
from onnxscript import opset17 as op

from skillserve_export.bodies import domain
from skillserve_export.bodies.spans import chunk_spans

__all__ = [
    "gather_attention",
    "gather_banded_attention",
    "gather_max_sim",
    "gather_mean",
    "home",
    "sequence_slots",
    "slots",
]


@script(domain, default_opset=op)
def slots(starts: INT64, lens: INT64):
    """Lay stretches of tokens out side by side: the token that each slot reads, and whether the slot is real."""
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    longest = op.ReduceMax(lens, keepdims=0)
    place = op.Unsqueeze(op.Range(op.Constant(value_int=0), longest, op.Constant(value_int=1)), zero)
    real = op.Less(place, op.Unsqueeze(lens, one))
    # Slots of padding read the first token of their own stretch, and the mask takes it out again. One of another
    # stretch would carry its overflow over: a mask cannot take out what is not finite.
    start = op.Unsqueeze(starts, one)
    token = op.Where(real, place + start, start)
    return token, real


@script(domain, default_opset=op)
def sequence_slots(bounds: INT64):
    """Slots `[S, L]` of whole sequences."""
    starts = op.Slice(bounds, op.Constant(value_ints=[0]), op.Constant(value_ints=[-1]))
    lens = op.Slice(bounds, op.Constant(value_ints=[1]), op.Shape(bounds)) - starts
    token, real = slots(starts, lens)
    return token, real


@script(domain, default_opset=op)
def home(rows: FLOAT, real: BOOL) -> FLOAT:
    """Rows of real slots alone: their flat places are in token order."""
    places = op.NonZero(op.Reshape(real, op.Constant(value_ints=[-1])))
    return op.Gather(rows, op.Squeeze(places, op.Constant(value_ints=[0])), axis=0)


@script(domain, default_opset=op)
def gather_attention(query: FLOAT, key: FLOAT, value: FLOAT, bounds: INT64, num_heads: int) -> FLOAT:
    """Softmax attention over padded copies `[S, L, H]`: `[T, H]` → `[T, H]`."""
    one = op.Constant(value_ints=[1])
    heads_1 = op.Reshape(op.Constant(value_int=num_heads), one)
    hidden_1 = op.Shape(query, start=1, end=2)
    head_dim = op.Div(hidden_1, heads_1)
    token, real = sequence_slots(bounds)
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
    return home(mixed, real)


@script(domain, default_opset=op)
def gather_banded_attention(
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

    A narrow band is cut into chunks, which copies each key about twice and keeps memory linear in the length; where
    the band is wider than the longest sequence, as in causal attention, a chunk is a whole sequence.
    """
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    before_1 = op.Reshape(op.Constant(value_int=before), one)
    after_1 = op.Reshape(op.Constant(value_int=after), one)
    kv_heads_1 = op.Reshape(op.Constant(value_int=num_kv_heads), one)
    group_1 = op.Div(op.Reshape(op.Constant(value_int=num_heads), one), kv_heads_1)
    hidden_1 = op.Shape(query, start=1, end=2)
    head_dim = op.Div(op.Shape(key, start=1, end=2), kv_heads_1)
    starts = op.Slice(bounds, zero, op.Constant(value_ints=[-1]))
    longest = op.ReduceMax(op.Slice(bounds, one, op.Shape(bounds)) - starts, keepdims=1)
    size = op.Max(op.Constant(value_ints=[128]), op.Min(longest, before_1 + after_1))
    q_starts, q_ends, k_starts, k_ends = chunk_spans(bounds, size, before_1, after_1)
    from_CQ, real_CQ = slots(q_starts, q_ends - q_starts)
    to_CM, real_CM = slots(k_starts, k_ends - k_starts)
    split = op.Concat(op.Shape(from_CQ), kv_heads_1, group_1, head_dim, axis=0)
    # Query heads of one key head are broadcast against it; keys and values are not repeated for them.
    split_kv = op.Concat(op.Shape(to_CM), kv_heads_1, one, head_dim, axis=0)
    merge = op.Concat(op.Constant(value_ints=[-1]), hidden_1, axis=0)
    scaled = op.Div(query, op.Sqrt(op.CastLike(head_dim, query)))
    q = op.Transpose(op.Reshape(op.Gather(scaled, from_CQ, axis=0), split), perm=[0, 2, 3, 1, 4])
    k = op.Transpose(op.Reshape(op.Gather(key, to_CM, axis=0), split_kv), perm=[0, 2, 3, 4, 1])
    v = op.Transpose(op.Reshape(op.Gather(value, to_CM, axis=0), split_kv), perm=[0, 2, 3, 1, 4])
    offset_CQM = op.Unsqueeze(to_CM, one) - op.Unsqueeze(from_CQ, op.Constant(value_ints=[2]))
    near_CQM = op.And(op.GreaterOrEqual(offset_CQM, op.Neg(before_1)), op.LessOrEqual(offset_CQM, after_1))
    seen_CQM = op.And(near_CQM, op.Unsqueeze(real_CM, one))
    forbidden = op.CastLike(op.Constant(value_float=-10000.0), query)
    allowed = op.CastLike(op.Constant(value_float=0.0), query)
    bias = op.Unsqueeze(op.Where(seen_CQM, allowed, forbidden), op.Constant(value_ints=[1, 2]))
    weights = op.Softmax(op.MatMul(q, k) + bias, axis=-1)
    mixed = op.Reshape(op.Transpose(op.MatMul(weights, v), perm=[0, 3, 1, 2, 4]), merge)
    return home(mixed, real_CQ)


@script(domain, default_opset=op)
def gather_mean(hidden: FLOAT, bounds: INT64) -> FLOAT:
    """Mean of each sequence over a padded copy: `[T, H]` → `[S, H]`."""
    token, real = sequence_slots(bounds)
    nothing = op.CastLike(op.Constant(value_float=0.0), hidden)
    # Selected, not multiplied by 0: see loop_mean.
    kept = op.Where(op.Unsqueeze(real, op.Constant(value_ints=[2])), op.Gather(hidden, token, axis=0), nothing)
    total = op.ReduceSum(kept, op.Constant(value_ints=[1]), keepdims=0)
    lens = op.ReduceSum(op.CastLike(real, hidden), op.Constant(value_ints=[1]), keepdims=1)
    return op.Div(total, lens)


@script(domain, default_opset=op)
def gather_max_sim(
    states: FLOAT, weights: FLOAT, bounds: INT64, requests: INT64, skills: INT64, window: Sequence[int]
) -> FLOAT:
    """The best stretch of each pair over padded copies `[P, Q, H]` and `[P, M, H]` → `[P]`."""
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    nothing = op.CastLike(op.Constant(value_float=0.0), states)
    farthest = op.CastLike(op.Constant(value_float=-1.0), states)
    lowest = op.CastLike(op.Constant(value_float=-2.0), states)
    least = op.CastLike(op.Constant(value_float=1e-6), states)
    window_1 = op.Constant(value_ints=window)
    q_starts = op.Gather(bounds, requests, axis=0)
    k_starts = op.Gather(bounds, skills, axis=0)
    q_lens = op.Gather(bounds, requests + one, axis=0) - q_starts
    from_PQ, real_PQ = slots(q_starts, q_lens)
    to_PM, real_PM = slots(k_starts, op.Gather(bounds, skills + one, axis=0) - k_starts)
    offered = op.Transpose(op.Gather(states, to_PM, axis=0), perm=[0, 2, 1])
    cosines = op.MatMul(op.Gather(states, from_PQ, axis=0), offered)
    heard = op.And(real_PM, op.Greater(op.Gather(weights, to_PM, axis=0), nothing))
    nearest = op.ReduceMax(op.Where(op.Unsqueeze(heard, one), cosines, farthest), axes=[2], keepdims=0)
    # Selected, not multiplied by 0: see loop_mean.
    weight = op.Where(real_PQ, op.Gather(weights, from_PQ, axis=0), nothing)
    both = op.Concat(op.Unsqueeze(op.Where(real_PQ, nearest * weight, nothing), one), op.Unsqueeze(weight, one), axis=1)
    # Each stretch is summed on its own: see loop_max_sim.
    room = op.Max(window_1 - op.Shape(from_PQ, start=1, end=2), zero)
    padded = op.Pad(both, op.Concat(op.Constant(value_ints=[0, 0, 0, 0, 0]), room, axis=0), nothing)
    total, share = op.Split(op.AveragePool(padded, kernel_shape=window), op.Constant(value_ints=[1, 1]), axis=1)
    means = op.Squeeze(op.Div(total, op.Max(share, least)), one)
    last = op.Unsqueeze(op.Max(q_lens - window_1, zero), one)
    step = op.Constant(value_int=1)
    place = op.Unsqueeze(op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(means, start=1, end=2)), step), zero)
    best = op.ReduceMax(op.Where(op.LessOrEqual(place, last), means, lowest), axes=[1], keepdims=0)
    # ReduceMax passes over NaN: see loop_max_sim.
    return best + op.ReduceSum(cosines, op.Constant(value_ints=[1, 2]), keepdims=0) * nothing
