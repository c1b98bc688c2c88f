"""Running sums as products: the same numbers, and graphs of operators that TensorRT's parser has on its list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from skillserve.card import Pooling, read_card
from skillserve.errors import ParityError
from skillserve.tensors import Role
from skillserve_export.families import family_of
from skillserve_export.graph import export_padded
from skillserve_export.running_sums import sums_as_products
from skillserve_export.served import PaddedGraph

CASES: list[tuple[str, Role, Pooling | None, int]] = [
    ("bert", "embedder", "mean", 0),
    ("bert", "reranker", None, 1),
    ("xlm-roberta", "embedder", "cls", 1),
    ("modernbert", "reranker", None, 0),
    ("qwen3", "embedder", "last", 2),
    ("qwen3", "reranker", None, 2),
]
"""Family, role, pooling, running sums in the padded graph."""

TAKEN = {
    "Abs", "Add", "And", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Cos", "Div", "Equal", "Erf",
    "Expand", "Flatten", "Gather", "Gemm", "Identity", "LayerNormalization", "LessOrEqual", "MatMul", "Mul", "Neg",
    "Not", "Pow", "Range", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Shape", "Sigmoid", "Sin",
    "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Of what TensorRT 10's parser takes, with whole numbers too where ours are whole: onnx-tensorrt, docs/operators.md."""


@pytest.mark.parametrize(("family", "role", "pooling", "num"), CASES)
def test_padded_graphs_keep_their_answers_and_hold_what_the_parser_takes(
    family: str, role: Role, pooling: Pooling | None, num: int, make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    weights = make_weights(family, role, pooling, max_tokens=48)
    card = read_card(weights)
    path = tmp_path / "model.onnx"
    kind = family_of(card)
    export_padded(kind.padded(kind.load(weights, card), card, weights), card, path)
    rng = np.random.default_rng(3)
    asked = [rng.integers(0, card.vocab_size, size).astype(np.int32) for size in (3, 48, 17)]
    before = PaddedGraph(path).run(asked)
    assert sums_as_products(path) == num
    np.testing.assert_array_equal(PaddedGraph(path).run(asked), before)
    assert {node.op_type for node in onnx.load(path).graph.node} <= TAKEN
    assert sums_as_products(path) == 0


def _graph(path: Path, axis: int, kind: int = TensorProto.INT64, **options: int) -> None:
    """`y = CumSum(x)` over a matrix."""
    inputs, outputs = ([helper.make_tensor_value_info(name, kind, ["rows", "length"])] for name in ("x", "y"))
    where = helper.make_tensor("axis", TensorProto.INT64, [], [axis])
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], name="sum", **options)
    graph = helper.make_graph([node], "sums", inputs, outputs, [where])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64])
def test_sums_are_those_of_numpy_as_far_as_lengths_go(axis: int, kind: int, tmp_path: Path) -> None:
    path = tmp_path / "sums.onnx"
    _graph(path, axis, kind)
    assert sums_as_products(path) == 1
    numpy = {TensorProto.INT32: np.int32, TensorProto.INT64: np.int64}[kind]
    x = np.random.default_rng(1).integers(-2, 3, (3, 1_500)).astype(numpy)
    [y] = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert y.dtype == numpy
    np.testing.assert_array_equal(y, np.cumsum(x, axis=1))


@pytest.mark.parametrize(("axis", "options"), [(0, {}), (1, {"exclusive": 1}), (1, {"reverse": 1})])
def test_other_sums_are_refused_rather_than_changed(axis: int, options: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "sums.onnx"
    _graph(path, axis, **options)
    with pytest.raises(ParityError, match="last axis"):
        sums_as_products(path)


def test_sums_of_fractions_stay_since_the_parser_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "sums.onnx"
    _graph(path, 0, TensorProto.FLOAT)
    assert sums_as_products(path) == 0
    assert onnx.load(path).graph.node[0].op_type == "CumSum"
