"""w8 and w4: weights stored in eight or four bits, and read as numbers again where they are multiplied.

    W_kn = (q_kn - z_nb) · s_nb   a scale and a zero point for 32 input features of an output channel
    y = x · W + b                 MatMulNBits, an operator of ONNX Runtime's own; the bias is added behind it

What is saved is memory, and the time to read it. GPUs multiply by the numbers that are restored. CPUs are told that
they may round activations, too, 32 features of one token at a time, to int8: it costs little beside the weights, and
without it they are slower than in float32. Such a block is one token's alone, so a text has the same vector in whatever
company it is computed.

Shape legend: K input features, N output features, B blocks of input features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import NodeProto, helper

from skillserve.graph_file import CONTRIB_DOMAIN
from skillserve_export.precision.blocks import BLOCK, packed, quantised_blocks
from skillserve_export.precision.linear import Linear, add_constant, replace_nodes

__all__ = ["StoredPrecision", "store"]

StoredPrecision = Literal["w8", "w4"]

_BITS: dict[StoredPrecision, int] = {"w8": 8, "w4": 4}
_INT8_ACTIVATIONS = 4
"""The operator's `accuracy_level`; GPUs do not read it."""


def store(model: onnx.ModelProto, layers: Sequence[Linear], precision: StoredPrecision) -> None:
    """Store the weights of these layers in fewer bits, in place."""
    model.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
    replace_nodes(model, {layer.result: _product(model, layer, _BITS[precision]) for layer in layers})


def _product(model: onnx.ModelProto, layer: Linear, bits: int) -> list[NodeProto]:
    y, weight_KN = layer.result, layer.numbers()
    blocks = quantised_blocks(weight_KN, bits)
    stored = {
        "weight": packed(blocks.codes, bits),
        "scale": blocks.scale.reshape(-1),
        "zero": packed(blocks.zero, bits).reshape(-1),
    }
    features, outputs = weight_KN.shape
    node = helper.make_node(
        "MatMulNBits",
        [layer.source, *(add_constant(model, f"{y}/{name}", np.asarray(value)) for name, value in stored.items())],
        [y],
        name=layer.node.name,
        domain=CONTRIB_DOMAIN,
        K=features,
        N=outputs,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=_INT8_ACTIVATIONS,
    )
    if not layer.bias:
        return [node]
    # Its own input for a bias is younger than the operator.
    node.output[0] = f"{y}/product"
    return [node, helper.make_node("Add", [f"{y}/product", layer.bias], [y])]
