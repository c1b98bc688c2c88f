"""Products of transposed tensors in one operator, FusedMatMul, an operator of ONNX Runtime's own.

ONNX Runtime makes them itself when it loads a graph, and in float32 it makes all of them. In an int8 graph it stops
after the loop of the first layer, and the others copy what they multiply.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import GraphProto, NodeProto, helper

from skillserve.graph_file import CONTRIB_DOMAIN
from skillserve_export.precision.linear import names_read

__all__ = ["fuse_transposed"]


def fuse_transposed(model: onnx.ModelProto) -> None:
    """Fuse, in place, wherever a loop multiplies what it has just transposed in one of the operator's ways."""
    for body in _bodies(model.graph):
        _fuse(body)


def _bodies(graph: GraphProto) -> Iterator[GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
                yield from _bodies(attribute.g)


def _fuse(graph: GraphProto) -> None:
    transposes = {node.output[0]: node for node in graph.node if node.op_type == "Transpose"}
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        ways = {
            side: (place, way)
            for place, side in enumerate("AB")
            if (found := transposes.get(node.input[place])) and (way := _way(list(found.attribute[0].ints)))
        }
        if not ways:
            continue
        node.op_type, node.domain = "FusedMatMul", CONTRIB_DOMAIN
        for side, (place, way) in ways.items():
            node.input[place] = transposes[node.input[place]].input[0]
            node.attribute.extend(helper.make_attribute(f"{name}{side}", 1) for name in way)
    read = names_read(graph)
    kept: list[NodeProto] = [node for node in graph.node if node.op_type != "Transpose" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)


def _way(order: Sequence[int]) -> tuple[str, ...]:
    """What the operator calls this order of axes; empty if it has no name for it.

    >>> _way([1, 0, 2]), _way([1, 2, 3, 0]), _way([0, 2, 1]), _way([2, 0, 1])
    (('transBatch',), ('transBatch', 'trans'), ('trans',), ())
    """
    rank = len(order)
    ways: dict[tuple[int, ...], tuple[str, ...]] = {(*range(rank - 2), rank - 1, rank - 2): ("trans",)}
    if rank > 2:
        ways[*range(1, rank - 1), 0, rank - 1] = ("transBatch",)
        ways[*range(1, rank), 0] = ("transBatch", "trans")
    return ways.get(tuple(order), ())
