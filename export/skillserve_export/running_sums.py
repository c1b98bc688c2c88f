"""Running sums of whole numbers, rewritten as products: what TensorRT's parser takes of a padded graph.

The parser's list of operators has `CumSum` for floating point only (onnx-tensorrt, docs/operators.md, TensorRT 10),
and builds it as a loop over the length, one step a token. Padded graphs count tokens with it: positions of
XLM-RoBERTa, segment types of BERT's pairs, the last token of Qwen3. A product with a triangle of ones gives the same
numbers, in float32 exactly as long as they stay below 2²⁴, and a length never comes near that. All the other
operators of our padded graphs are on the list.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from skillserve.errors import ParityError
from skillserve_export.files import read_apart, write_whole

__all__ = ["sums_as_products"]

_WHOLE = {TensorProto.INT32, TensorProto.INT64}


def sums_as_products(path: Path) -> int:
    """Rewrite the graph at `path` in place; returns how many running sums there were.

    Raises ParityError for one that is not a plain sum along the last axis.
    """
    model, weights = read_apart(path)
    kinds = _kinds(path)
    nodes: list[NodeProto] = []
    num = 0
    for node in model.graph.node:
        kind, rank = kinds.get(node.input[0], (0, 0)) if node.op_type == "CumSum" else (0, 0)
        if kind not in _WHOLE:
            nodes.append(node)
            continue
        _require_plain(model, node, rank)
        nodes += _product(node, kind, f"{node.output[0]}/sum")
        num += 1
    if num:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    write_whole(model, weights, path)
    onnx.checker.check_model(path)
    return num


def _kinds(path: Path) -> dict[str, tuple[int, int]]:
    """Element type and rank of every tensor that is known of, by name."""
    inferred = path.with_name(f"{path.name}.shapes")
    onnx.shape_inference.infer_shapes_path(path, inferred)
    graph = onnx.load(inferred, load_external_data=False).graph
    inferred.unlink()
    return {
        value.name: (value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim))
        for value in (*graph.value_info, *graph.input, *graph.output)
    }


def _require_plain(model: onnx.ModelProto, node: NodeProto, rank: int) -> None:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {each.output[0]: each.attribute[0].t for each in model.graph.node if each.op_type == "Constant"}
    axis = int(numpy_helper.to_array(constants[node.input[1]])) if node.input[1] in constants else None
    options = {attribute.name: attribute.i for attribute in node.attribute if attribute.i}
    if axis not in (-1, rank - 1) or options:
        raise ParityError(
            f"running sum `{node.name}`",
            got=f"axis {axis} of {rank}, {options or 'no options'}",
            wanted="a plain one along the last axis, which TensorRT takes as a product",
            fix="Serve this family with --runtime onnxruntime, and report it.",
        )


def _product(node: NodeProto, kind: int, name: str) -> list[NodeProto]:
    """`x · triangle`, where `triangle[i, j]` is 1 if i ≤ j: the sum of all up to j."""

    def constant(part: str, value: npt.NDArray[np.int64]) -> NodeProto:
        return helper.make_node("Constant", [], [f"{name}/{part}"], value=numpy_helper.from_array(value))

    return [
        constant("zero", np.array(0, np.int64)),
        constant("one", np.array(1, np.int64)),
        constant("last", np.array(-1, np.int64)),
        constant("column", np.array([1], np.int64)),
        helper.make_node("Shape", [node.input[0]], [f"{name}/shape"]),
        helper.make_node("Gather", [f"{name}/shape", f"{name}/last"], [f"{name}/length"]),
        helper.make_node("Range", [f"{name}/zero", f"{name}/length", f"{name}/one"], [f"{name}/places"]),
        helper.make_node("Unsqueeze", [f"{name}/places", f"{name}/column"], [f"{name}/from"]),
        helper.make_node("LessOrEqual", [f"{name}/from", f"{name}/places"], [f"{name}/counted"]),
        helper.make_node("Cast", [f"{name}/counted"], [f"{name}/triangle"], to=TensorProto.FLOAT),
        helper.make_node("Cast", [node.input[0]], [f"{name}/terms"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", [f"{name}/terms", f"{name}/triangle"], [f"{name}/sums"]),
        helper.make_node("Cast", [f"{name}/sums"], list(node.output), to=kind),
    ]
