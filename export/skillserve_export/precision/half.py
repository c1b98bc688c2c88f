"""fp16 and bf16: products in half precision, everything that works on single numbers in float32.

    half       linear layers of the encoder, products of queries, keys and values, the table of word vectors
    as it is   operators that only move numbers (reshape, transpose, gather, …) do so in what they are given
    float32    norms, softmax, activations, residuals, rotary positions, pooling, the head, cosines of tokens

So a number is rounded where it enters a product and where it leaves one, and nowhere else. In the core `loop`
attention stays float32: it stands in subgraphs, and serves CPUs, which gain nothing by half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from skillserve_export.precision.linear import Linear, add_constant, names_read, replace_nodes

__all__ = ["HalfPrecision", "halve"]

HalfPrecision = Literal["fp16", "bf16"]


class _Kind(NamedTuple):
    onnx: int
    numpy: type[np.generic]


_KINDS: dict[HalfPrecision, _Kind] = {
    "fp16": _Kind(TensorProto.FLOAT16, np.float16),
    "bf16": _Kind(TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}

_MOVERS = {"Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Their first input is moved, the others say where to."""


def halve(
    model: onnx.ModelProto,
    layers: Sequence[Linear],
    lookups: Sequence[tuple[NodeProto, TensorProto]],
    precision: HalfPrecision,
) -> None:
    """Compute these layers, the products between what they give, and these lookups in half precision, in place."""
    _Halving(model, layers, lookups, precision).rewrite()


class _Halving:
    """One walk over the nodes. A name stands for the float32 tensor, `name/fp16` for the half one."""

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Sequence[Linear],
        lookups: Sequence[tuple[NodeProto, TensorProto]],
        precision: HalfPrecision,
    ) -> None:
        self.model = model
        self.kind = _KINDS[precision]
        self.suffix = f"/{precision}"
        self.products = {layer.result for layer in layers}
        self.to_come = set(self.products)
        """Layers that the walk has not met yet; behind the last one there is no attention."""
        self.lookups = {node.output[0] for node, _ in lookups}
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.half: set[str] = set()
        """Names whose half tensor exists."""
        self.full = {value.name for value in model.graph.input} | self.constants.keys()
        """Names whose float32 tensor, or tensor of whole numbers, exists."""
        self.reached: set[str] = set()
        """What depends on a layer: two of these multiplied are attention; rotary angles are not among them."""

    def rewrite(self) -> None:
        replaced = {node.output[0]: self._rewritten(node) for node in self.model.graph.node}
        last = self.model.graph.node[-1].output[0]
        for output in self.model.graph.output:
            replaced[last] += self._as_full(output.name)
        replace_nodes(self.model, replaced)

    def _rewritten(self, node: NodeProto) -> list[NodeProto]:
        before: list[NodeProto] = []
        read = names_read(onnx.GraphProto(node=[node]))
        if node.output[0] in self.products or read & self.reached:
            self.reached.update(node.output)
        self.to_come.discard(node.output[0])
        if node.output[0] in self.products or self._is_attention(node):
            before += [cast for name in node.input if name for cast in self._as_half(name)]
            return [*before, self._on_halves(node, range(len(node.input)))]
        if node.output[0] in self.lookups or (node.op_type in _MOVERS and self._only_half(node.input[0])):
            before += self._as_half(node.input[0])
            return [*before, self._on_halves(node, [0])]
        before += [cast for name in sorted(read) for cast in self._as_full(name)]
        self.full.update(node.output)
        return [*before, node]

    def _is_attention(self, node: NodeProto) -> bool:
        return node.op_type == "MatMul" and bool(self.to_come) and all(name in self.reached for name in node.input)

    def _only_half(self, name: str) -> bool:
        return name in self.half and name not in self.full

    def _on_halves(self, node: NodeProto, places: Sequence[int]) -> NodeProto:
        """The node with the half tensors at these inputs, and half results."""
        changed = NodeProto()
        changed.CopyFrom(node)
        for place in places:
            if changed.input[place]:
                changed.input[place] += self.suffix
        for place, name in enumerate(node.output):
            changed.output[place] = name + self.suffix
            self.half.add(name)
        return changed

    def _as_half(self, name: str) -> list[NodeProto]:
        """What has to stand before a node that reads the half tensor."""
        if name in self.half:
            return []
        self.half.add(name)
        if name in self.constants:
            with np.errstate(over="ignore"):  # what does not fit becomes infinite, and the gate says where
                numbers = numpy_helper.to_array(self.constants[name]).astype(self.kind.numpy)
            add_constant(self.model, name + self.suffix, numbers)
            return []
        return [helper.make_node("Cast", [name], [name + self.suffix], to=self.kind.onnx)]

    def _as_full(self, name: str) -> list[NodeProto]:
        """What has to stand before a node that reads the float32 tensor."""
        if not self._only_half(name):
            return []
        self.full.add(name)
        return [helper.make_node("Cast", [name + self.suffix], [name], to=TensorProto.FLOAT)]
