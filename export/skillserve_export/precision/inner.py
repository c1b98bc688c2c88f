"""Inner tensors of a graph, seen by running it: what quantisation has to fit, and where half precision overflows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from skillserve_export.device import Device, open_session

__all__ = ["first_overflow", "inner_tensors"]

Feeds = Mapping[str, npt.NDArray[Any]]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def inner_tensors(graph: Path, names: Sequence[str], feeds: Feeds) -> dict[str, npt.NDArray[np.float32]]:
    """Run a graph on the CPU and give float32 tensors inside it, by name."""
    model = onnx.load(graph, load_external_data=False)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    with _beside(graph, model) as watched:
        return dict(zip(names, open_session(watched).run(None, dict(feeds)), strict=True))


def first_overflow(graph: Path, feeds: Feeds, device: Device) -> str | None:
    """The first node, in the order of the graph, whose result is not finite, with the weights it reads; None if none.

    Every result is summed up inside the graph, so what leaves it is one number a node.
    """
    model = onnx.load(graph, load_external_data=False)
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    watched = [node for node in model.graph.node if kinds.get(node.output[0]) in _FLOATS]
    del model.graph.output[:]
    for node in watched:
        name = node.output[0]
        model.graph.node.append(helper.make_node("Cast", [name], [f"{name}/seen"], to=TensorProto.FLOAT))
        model.graph.node.append(helper.make_node("ReduceL1", [f"{name}/seen"], [f"{name}/sum"], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}/sum", TensorProto.FLOAT, []))
    with _beside(graph, model) as path:
        sums = open_session(path, device).run(None, dict(feeds))
    weights = {tensor.name for tensor in model.graph.initializer}
    for node, total in zip(watched, sums, strict=True):
        if not np.isfinite(total):
            read = [name for name in node.input if name in weights]
            return f"`{node.name or node.output[0]}`" + (f" ({', '.join(read)})" if read else "")
    return None


@contextmanager
def _beside(graph: Path, model: onnx.ModelProto) -> Iterator[Path]:
    """A changed graph as a file in the folder of the original, whose external data it may read."""
    path = graph.with_name(f"{graph.stem}-watched.onnx")
    try:
        onnx.save(model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)
