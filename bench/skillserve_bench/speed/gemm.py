"""How fast this machine multiplies matrices, in each precision and by whose kernels.

What a graph may reach at best is the rate of the very products it consists of, so the model's own shapes are
multiplied, as often as the model has them, with as many tokens as one execution joins. ONNX Runtime's kernels are
those that the graph runs; PyTorch's (oneDNN and MKL) are a second opinion on the machine. The faster one is the limit.

Shape legend: M tokens, K input features, N output features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from skillserve.errors import MissingExtraError
from skillserve.tensors import Precision
from skillserve_bench.speed.flops import Product

__all__ = ["Gemm", "gemms"]

MEASURED_S = 1.0
"""Least time of one measurement: hundreds of products of a small model."""

_OPSET, _IR_VERSION = 17, 8
"""As the exported graphs have them."""

_SEED = 7


class Gemm:
    """All linear products of a model in one precision, by one library."""

    def __init__(self, library: str, precision: Precision, runs: Sequence[tuple[Callable[[], object], float]]) -> None:
        self.library = library
        self.precision: Precision = precision
        self._runs = list(runs)

    @property
    def name(self) -> str:
        """`onnxruntime int8`."""
        return f"{self.library} {self.precision}"

    def rate(self, *, seconds: float = MEASURED_S) -> float:
        """Operations a second, over whole rounds through all shapes until the time is over, at least one."""
        flops = 0.0
        begin = time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < seconds or not flops:
            for run, cost in self._runs:
                run()
                flops += cost
        return flops / elapsed


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
    for (library, precision), make in makers.items():
        try:
            runs = [
                (make(product), float(2 * num_tokens * product.num_inputs * product.num_outputs * product.num))
                for product in products
            ]
            for run, _ in runs:
                run()
        except (RuntimeError, NotImplementedError) as error:
            absent[f"{library} {precision}"] = str(error).splitlines()[0]
        else:
            repeated = [
                (_repeated(run, product.num), cost) for (run, cost), product in zip(runs, products, strict=True)
            ]
            found.append(Gemm(library, precision, repeated))
    return found, absent


def _repeated(run: Callable[[], object], num: int) -> Callable[[], None]:
    def all_of_them() -> None:
        for _ in range(num):
            run()

    return all_of_them


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
