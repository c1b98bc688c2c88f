"""Which tokens each step of a banded attention reads.

Shape legend: S sequences, C chunks.
"""

from __future__ import annotations

from onnxscript import INT64, script
from onnxscript import opset17 as op

from skillserve_export.bodies import domain

__all__ = ["chunk_spans"]


@script(domain, default_opset=op)
def chunk_spans(bounds: INT64, size: INT64, before: INT64, after: INT64):
    """Cut sequences into chunks of at most `size` queries: where the queries of each stand, and all keys in reach.

    `bounds [S + 1]`, the others `[1]` → first and end of the queries, first and end of the keys, `[C]` each.
    """
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    axis = op.Constant(value_int=0)
    starts = op.Slice(bounds, zero, op.Constant(value_ints=[-1]))
    ends = op.Slice(bounds, one, op.Shape(bounds))
    counts = op.Div(ends - starts + size - one, size)
    firsts = op.CumSum(counts, axis) - counts
    each = op.Expand(one, op.ReduceSum(counts))
    # A one where a sequence's first chunk stands; summed up, the sequence of each chunk.
    owner = op.CumSum(op.ScatterElements(each - one, firsts, op.Expand(one, op.Shape(firsts)), axis=0), axis) - one
    start = op.Gather(starts, owner)
    end = op.Gather(ends, owner)
    place = op.CumSum(each, axis) - one - op.Gather(firsts, owner)
    query_start = start + place * size
    query_end = op.Min(query_start + size, end)
    key_start = op.Max(query_start - before, start)
    key_end = op.Min(query_end + after, end)
    return query_start, query_end, key_start, key_end
