"""W8A8: whole numbers multiplied with whole numbers.

    s_t  = max_k |x_tk · f_k| / 127         one scale a token
    a_tk = round(x_tk · f_k / s_t) + 128    uint8, 128 is zero
    w_kn = round(W_kn / f_k / c_n)          int8, one scale an output channel
    y_tn = s_t · (c_n · Σ_k (a_tk - 128) · w_kn) + b_n     the bracket is MatMulIntegerToFloat, ONNX Runtime's own

The scale of a token comes from that token alone, so a text has the same vector in whatever company it is computed;
ONNX Runtime's own dynamic quantisation takes one scale for the whole batch. The factors f even out the channels
(`scales.smoothing`). The product scales its sums while they are in the processor's cache; standard operators would
write them as whole numbers and walk over them twice more. Its own scale of tokens is one for the whole batch, so that
stays 1. Layers that read the same activations (query, key, value; gate and up) share their quantisation.

Shape legend: T tokens, K input features, N output features, V words, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from skillserve.graph_file import CONTRIB_DOMAIN
from skillserve_export.precision.linear import Linear, add_constant, replace_nodes
from skillserve_export.precision.scales import LEVELS, TINY, WEIGHT_BITS, quantised_weights

__all__ = ["grouped", "quantise_layers", "quantise_words"]

_ZERO = 128
_FLAT, _FLOOR, _STEP, _ZERO_POINT, _ONE = "int8/flat", "int8/floor", "int8/step", "int8/zero", "int8/one"


def quantise_layers(
    model: onnx.ModelProto,
    layers: Sequence[Linear],
    factors: Mapping[str, npt.NDArray[np.float32]],
    ranks: Mapping[str, int],
    *,
    bits: int = WEIGHT_BITS,
) -> None:
    """Replace layers by integer ones, in place; `factors` `[K]` and `ranks` of activations by their names."""
    add_constant(model, _FLAT, np.array([-1], np.int64))
    add_constant(model, _FLOOR, np.asarray(TINY))
    add_constant(model, _STEP, np.asarray(np.float32(1 / LEVELS)))
    add_constant(model, _ZERO_POINT, np.asarray(np.uint8(_ZERO)))
    add_constant(model, _ONE, np.asarray(np.float32(1)))
    model.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
    replaced: dict[str, list[NodeProto]] = {}
    for x, readers in grouped(layers).items():
        factor_K = factors.get(x)
        nodes = _rows(model, x, factor_K, readers[0].numbers().shape[0], ranks[x])
        for layer in readers:
            weight_KN = layer.numbers() if factor_K is None else layer.numbers() / factor_K[:, None]
            replaced[layer.result] = [*nodes, *_product(model, layer, weight_KN, ranks[x], bits)]
            nodes = []
    replace_nodes(model, replaced)


def grouped(layers: Sequence[Linear]) -> dict[str, list[Linear]]:
    """Layers by what they read, in the order of the graph."""
    groups: dict[str, list[Linear]] = {}
    for layer in layers:
        groups.setdefault(layer.source, []).append(layer)
    return groups


def quantise_words(model: onnx.ModelProto, lookups: Sequence[tuple[NodeProto, TensorProto]]) -> None:
    """Store tables of word vectors `[V, H]` as int8 with a scale a word; what is read of them is float32 again."""
    replaced: dict[str, list[NodeProto]] = {}
    for node, table in lookups:
        integers_HV, scale_V = quantised_weights(numpy_helper.to_array(table).T)
        y = node.output[0]
        words = add_constant(model, f"{y}/words", integers_HV.T)
        scales = add_constant(model, f"{y}/scales", scale_V[:, None])
        replaced[y] = [
            helper.make_node("Gather", [words, node.input[1]], [f"{y}/whole"], axis=0),
            helper.make_node("Gather", [scales, node.input[1]], [f"{y}/scale"], axis=0),
            helper.make_node("Cast", [f"{y}/whole"], [f"{y}/float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{y}/float", f"{y}/scale"], [y]),
        ]
    replace_nodes(model, replaced)


def _rows(
    model: onnx.ModelProto, x: str, factor_K: npt.NDArray[np.float32] | None, width: int, rank: int
) -> list[NodeProto]:
    """`x` → `x/rows [T, K]` uint8 and `x/scale [T, 1]`."""
    node, source, nodes = helper.make_node, x, []
    if factor_K is not None:
        nodes.append(node("Mul", [source, add_constant(model, f"{x}/factor", factor_K)], [f"{x}/even"]))
        source = f"{x}/even"
    if rank != 2:
        shape = add_constant(model, f"{x}/shape", np.array([-1, width], np.int64))
        nodes.append(node("Reshape", [source, shape], [f"{x}/flat"]))
        source = f"{x}/flat"
    zero = helper.make_tensor("zero", TensorProto.UINT8, [1], [_ZERO])
    return [
        *nodes,
        node("Abs", [source], [f"{x}/size"]),
        node("ReduceMax", [f"{x}/size"], [f"{x}/peak"], axes=[1], keepdims=1),
        node("Max", [f"{x}/peak", _FLOOR], [f"{x}/some"]),
        node("Mul", [f"{x}/some", _STEP], [f"{x}/scale"]),
        node("Reshape", [f"{x}/scale", _FLAT], [f"{x}/scale_T"]),
        node("Shape", [f"{x}/scale_T"], [f"{x}/tokens"]),
        node("ConstantOfShape", [f"{x}/tokens"], [f"{x}/zero_T"], value=zero),
        node("QuantizeLinear", [source, f"{x}/scale_T", f"{x}/zero_T"], [f"{x}/rows"], axis=0),
    ]


def _product(
    model: onnx.ModelProto, layer: Linear, weight_KN: npt.NDArray[np.float32], rank: int, bits: int
) -> list[NodeProto]:
    """`x/rows`, `x/scale` → y."""
    x, y, node = layer.source, layer.result, helper.make_node
    integers_KN, scale_N = quantised_weights(weight_KN, bits)
    weight = add_constant(model, f"{y}/weight", integers_KN)
    scale = add_constant(model, f"{y}/scale", scale_N)
    nodes = [
        node(
            "MatMulIntegerToFloat",
            [f"{x}/rows", weight, _ONE, scale, _ZERO_POINT],
            [f"{y}/by_channel"],
            name=layer.node.name,
            domain=CONTRIB_DOMAIN,
        ),
        node("Mul", [f"{y}/by_channel", f"{x}/scale"], [f"{y}/by_token"]),
    ]
    last = f"{y}/by_token"
    if layer.bias:
        nodes.append(node("Add", [last, layer.bias], [f"{y}/sum_and_bias"]))
        last = f"{y}/sum_and_bias"
    if rank != 2:
        width = add_constant(model, f"{y}/width", np.array([len(scale_N)], np.int64))
        nodes += [
            node("Shape", [x], [f"{y}/places"], end=-1),
            node("Concat", [f"{y}/places", width], [f"{y}/shape"], axis=0),
            node("Reshape", [last, f"{y}/shape"], [f"{y}/shaped"]),
        ]
    nodes[-1].output[0] = y
    return nodes
