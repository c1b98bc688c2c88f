"""What a device can run, found out by running it: one linear layer in each precision."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from skillserve.errors import UsageError
from skillserve.tensors import Precision
from skillserve_export.bodies import OPSET
from skillserve_export.device import Device, open_session, runtime
from skillserve_export.precision.half import halve
from skillserve_export.precision.int8 import quantise_layers
from skillserve_export.precision.linear import MIN_FEATURES, linear_layers
from skillserve_export.precision.stored import store

__all__ = ["require_runnable"]


def require_runnable(precision: Precision, device: Device) -> None:
    """Raise UsageError if the device is not there, or has no kernels for the precision; the gate could not run."""
    cause = _failure(precision, device)
    if cause is None:
        return
    able = [each for each in get_args(Precision) if _failure(each, device) is None]
    other = "" if device == "cuda" else ", or where a GPU is: --device cuda"
    raise UsageError(
        f"precision `{precision}`",
        got=f"{runtime(device)}, which cannot run it: {' '.join(str(cause).split())[:200]}",
        wanted=f"one that it can: {', '.join(able)}; what no gate has run is not written",
        fix=f"Export in one of these{other}.",
    ) from cause


def _failure(precision: Precision, device: Device) -> Exception | None:
    """What opening or running the layer raises."""
    rows = np.linspace(-1, 1, 2 * MIN_FEATURES, dtype=np.float32).reshape(2, MIN_FEATURES)
    layer = _layer(precision).SerializeToString()
    try:
        open_session(layer, device).run(None, {"x": rows})
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - the runtime's exceptions have no common class but this
        return error
    return None


def _layer(precision: Precision) -> onnx.ModelProto:
    """`y = x · W`, square."""
    weights = numpy_helper.from_array(np.eye(MIN_FEATURES, dtype=np.float32), "weights")
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", MIN_FEATURES])] for name in ("x", "y")
    )
    node = helper.make_node("MatMul", ["x", "weights"], ["y"])
    graph = helper.make_graph([node], "layer", inputs, outputs, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    layers = linear_layers(model)
    match precision:
        case "int8":
            quantise_layers(model, layers, {}, {"x": 2})
        case "w8" | "w4":
            store(model, layers, precision)
        case "fp16" | "bf16":
            halve(model, layers, [], precision)
    return model
