"""What of a finished graph holds the weights: linear layers, and the table of word vectors.

Shape legend: K input features, N output features, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

__all__ = [
    "MIN_FEATURES",
    "Linear",
    "add_constant",
    "linear_layers",
    "names_read",
    "norm_results",
    "replace_nodes",
    "word_lookups",
]

MIN_FEATURES = 32
"""Layers with fewer inputs or outputs cost nothing, and their few numbers round badly."""


@dataclass(frozen=True, slots=True)
class Linear:
    """`y = x · W + b`, one node of the graph."""

    node: NodeProto
    weight: TensorProto
    transposed: bool
    """The initialiser holds `[N, K]`."""

    @property
    def source(self) -> str:
        """Name of x."""
        return str(self.node.input[0])

    @property
    def result(self) -> str:
        """Name of y."""
        return str(self.node.output[0])

    @property
    def bias(self) -> str | None:
        """Name of b, if the node adds one."""
        return self.node.input[2] if len(self.node.input) > 2 and self.node.input[2] else None

    def numbers(self) -> npt.NDArray[np.float32]:
        """The weights `[K, N]`."""
        numbers = numpy_helper.to_array(self.weight)
        return numbers.T if self.transposed else numbers


def linear_layers(model: onnx.ModelProto) -> list[Linear]:
    """All of them, in the order of the graph; subgraphs hold attention, which has no weights."""
    initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
    found = (_linear(node, initialisers.get(node.input[1])) for node in model.graph.node if len(node.input) > 1)
    return [layer for layer in found if layer is not None and min(layer.weight.dims) >= MIN_FEATURES]


def _linear(node: NodeProto, weight: TensorProto | None) -> Linear | None:
    if weight is None or len(weight.dims) != 2 or weight.data_type != TensorProto.FLOAT:
        return None
    if node.op_type == "MatMul":
        return Linear(node, weight, transposed=False)
    if node.op_type == "Gemm":
        given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        plain = given.get("alpha", 1) == given.get("beta", 1) == 1 and not given.get("transA", 0)
        return Linear(node, weight, transposed=bool(given.get("transB", 0))) if plain else None
    return None


def word_lookups(model: onnx.ModelProto, vocab_size: int) -> list[tuple[NodeProto, TensorProto]]:
    """Nodes that read rows of a table `[V, H]`, with it.

    Tables of positions, rotary angles among them, have fewer rows than there are words, and stay exact.
    """
    tables = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.dims[0] >= vocab_size and tensor.data_type == TensorProto.FLOAT
    }
    return [
        (node, tables[node.input[0]])
        for node in model.graph.node
        if node.op_type == "Gather" and node.input[0] in tables and tables[node.input[0]].dims[1] >= MIN_FEATURES
    ]


def norm_results(model: onnx.ModelProto) -> set[str]:
    """Names of what layer norms give, and of what RMS norms give: the exporter ends those in a product with a gain."""
    gains = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 1 and tensor.dims[0] > 1}
    return {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "LayerNormalization" or (node.op_type == "Mul" and not gains.isdisjoint(node.input))
    }


def add_constant(model: onnx.ModelProto, name: str, value: npt.NDArray[np.generic]) -> str:
    """Add an initialiser; gives its name."""
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name


def replace_nodes(model: onnx.ModelProto, replaced: Mapping[str, Sequence[NodeProto]]) -> None:
    """Put other nodes in the places of those with these outputs, and drop the initialisers that nobody reads then."""
    nodes = [new for node in model.graph.node for new in replaced.get(node.output[0], [node])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = names_read(model.graph)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def names_read(graph: GraphProto) -> set[str]:
    """Every name that nodes or outputs of a graph read, in subgraphs too."""
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(node.input)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                read |= names_read(attribute.g)
    return read
