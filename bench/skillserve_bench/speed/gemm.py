"""How fast this machine multiplies matrices, in each precision and by whose kernels.

What a graph may reach at best is the rate of the very products it consists of, so the model's own shapes are
multiplied, as often as the model has them, with as many tokens as one execution joins. ONNX Runtime's kernels are
those that the graph runs; PyTorch's (oneDNN and MKL) are a second opinion on the machine. The faster one is the limit.

Shape legend: M tokens, K input features, N output features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from skillserve.errors import MissingExtraError
from skillserve.tensors import Precision
from skillserve_bench.speed.flops import Product

__all__ = ["Gemm", "Shape", "gemms"]

MEASURED_S = 1.0
"""Time of one measurement: tens of products of each shape of a small model."""

_OPSET, _IR_VERSION = 17, 8
"""As the exported graphs have them."""

_SEED = 7


@dataclass(frozen=True, slots=True)
class Shape:
    """One linear product, ready to be run."""

    run: Callable[[], object]
    flops: float
    num: int
    """How often the model has it."""

    def seconds(self, least_s: float) -> float:
        """Mean time, over at least one run and until `least_s` are over."""
        num = 0
        begin = time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < least_s or not num:
            self.run()
            num += 1
        return elapsed / num


@dataclass(frozen=True, slots=True)
class Gemm:
    """All linear products of a model in one precision, by one runtime."""

    runtime: str
    precision: Precision
    shapes: Sequence[Shape]

    @property
    def name(self) -> str:
        """`onnxruntime int8`."""
        return f"{self.runtime} {self.precision}"

    def rate(self, *, seconds: float = MEASURED_S) -> float:
        """Operations a second, each shape weighted by how often the model has it; takes about `seconds`."""
        each_s = [shape.seconds(seconds / len(self.shapes)) for shape in self.shapes]
        flops = sum(shape.flops * shape.num for shape in self.shapes)
        return flops / sum(shape.num * spent for shape, spent in zip(self.shapes, each_s, strict=True))


def gemms(
    products: Sequence[Product], *, num_tokens: int, options: onnxruntime.SessionOptions
) -> tuple[list[Gemm], dict[str, str]]:
    """Every kernel that runs here, and of the others why not, by name; `options` are the graph's.

    Raises MissingExtraError without `onnx` or `torch`.
    """
    try:
        import onnx  # noqa: F401 -- asked for here, so that its absence is told before anything is measured
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "measurement of the machine's GEMM rate",
            got=str(error),
            wanted="onnx and torch",
            fix="Install them: pip install 'skillserve[export]'",
        ) from error
    makers: Mapping[tuple[str, Precision], Callable[[Product], Callable[[], object]]] = {
        ("onnxruntime", "fp32"): lambda product: _onnx(product, num_tokens, options, integer=False),
        ("onnxruntime", "int8"): lambda product: _onnx(product, num_tokens, options, integer=True),
        ("torch", "fp32"): lambda product: _torch(product, num_tokens, torch.float32),
        ("torch", "bf16"): lambda product: _torch(product, num_tokens, torch.bfloat16),
        ("torch", "int8"): lambda product: _torch_integer(product, num_tokens),
    }
    found: list[Gemm] = []
    absent = {"onnxruntime bf16": "has no bf16 MatMul on the CPU"}
    for (runtime, precision), make in makers.items():
        try:
            shapes = [
                Shape(make(each), 2.0 * num_tokens * each.num_inputs * each.num_outputs, each.num) for each in products
            ]
            for shape in shapes:
                shape.run()
        except RuntimeError as error:  # torch says so, too, of what it has no kernel for
            absent[f"{runtime} {precision}"] = str(error).splitlines()[0]
        else:
            found.append(Gemm(runtime, precision, shapes))
    return found, absent


def _onnx(
    product: Product, num_tokens: int, options: onnxruntime.SessionOptions, *, integer: bool
) -> Callable[[], object]:
    """One product whose weights are a constant of the graph, as a layer's are: the runtime may lay them out anew."""
    from onnx import TensorProto, helper, numpy_helper

    x_MK, weight_KN = _integers(product, num_tokens) if integer else _floats(product, num_tokens)
    kind, result = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    constants = [numpy_helper.from_array(weight_KN, "weight")]
    inputs = ["x", "weight"]
    if integer:
        # As exported: unsigned activations around 128, signed weights.
        constants.append(numpy_helper.from_array(np.asarray(np.uint8(128)), "zero"))
        inputs.append("zero")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if integer else "MatMul", inputs, ["y"])],
        "gemm",
        [helper.make_tensor_value_info("x", kind, list(x_MK.shape))],
        [helper.make_tensor_value_info("y", result, [num_tokens, product.num_outputs])],
        initializer=constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": x_MK})


def _torch(product: Product, num_tokens: int, dtype: Any) -> Callable[[], object]:  # noqa: ANN401 -- torch.dtype
    import torch

    x_MK, weight_KN = (torch.from_numpy(each).to(dtype) for each in _floats(product, num_tokens))
    return lambda: torch.mm(x_MK, weight_KN)


def _torch_integer(product: Product, num_tokens: int) -> Callable[[], object]:
    import torch

    x_MK, weight_KN = _integers(product, num_tokens)
    x = torch.from_numpy((x_MK.astype(np.int16) - 128).astype(np.int8))
    weight = torch.from_numpy(weight_KN)
    return lambda: torch._int_mm(x, weight)  # noqa: SLF001 -- PyTorch's only product of whole numbers


def _floats(product: Product, num_tokens: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(_SEED)
    shapes = ((num_tokens, product.num_inputs), (product.num_inputs, product.num_outputs))
    x_MK, weight_KN = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return x_MK, weight_KN


def _integers(product: Product, num_tokens: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(_SEED)
    x_MK = rng.integers(0, 256, (num_tokens, product.num_inputs), np.uint8)
    return x_MK, rng.integers(-127, 128, (product.num_inputs, product.num_outputs), np.int8)
