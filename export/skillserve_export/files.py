"""Files of a graph: `model.onnx`, and `model.onnx.data` beside it where the weights are too large for one file.

A graph is a protobuf message, which may not exceed 2 GB, so what works on its nodes gets it without its weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from onnx import TensorProto
from onnx.external_data_helper import (
    load_external_data_for_model,
    load_external_data_for_tensor,
    uses_external_data,
)

__all__ = ["ONE_FILE_BYTES", "Weights", "move_graph", "read_apart", "write_whole"]

ONE_FILE_BYTES = 1_900_000_000
"""More weights than this go into a file of their own; protobuf's limit is 2,147,483,647 bytes with everything else."""

_APART_BYTES = 1024
"""Smaller tensors stay in the graph: shapes and indices, which ONNX Runtime wants to see when it plans."""

Weights = dict[str, bytes]
"""The numbers of a graph's large initialisers, by name."""


def move_graph(path: Path, folder: Path) -> None:
    """Move a graph with all of its files into a folder."""
    for file in (path, _data_file(path)):
        if file.exists():
            shutil.move(file, folder / file.name)


def read_apart(path: Path) -> tuple[onnx.ModelProto, Weights]:
    """A graph whose large initialisers are empty, and those initialisers, from wherever they were stored."""
    model = onnx.load(path, load_external_data=False)
    weights: Weights = {}
    for tensor in model.graph.initializer:
        numbers = _numbers(tensor, path.parent)
        if len(numbers) >= _APART_BYTES:
            weights[tensor.name] = numbers
            for field in ("raw_data", "external_data", "data_location"):
                tensor.ClearField(field)
    load_external_data_for_model(model, str(path.parent))
    return model, weights


def write_whole(model: onnx.ModelProto, weights: Weights, path: Path, *, one_file_bytes: int = ONE_FILE_BYTES) -> None:
    """Put the weights back and write the graph, in one file or two; files that stood there are replaced."""
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.raw_data = weights.pop(tensor.name)
    _data_file(path).unlink(missing_ok=True)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= one_file_bytes:
        onnx.save(model, path)
        return
    onnx.save(model, path, save_as_external_data=True, location=_data_file(path).name, size_threshold=_APART_BYTES)


def _data_file(path: Path) -> Path:
    """Where the weights of a graph stand if they are not in it."""
    return path.with_name(f"{path.name}.data")


def _numbers(tensor: TensorProto, folder: Path) -> bytes:
    if not uses_external_data(tensor):
        return bytes(tensor.raw_data)
    # Into a message of its own: what a field once held stays in memory as long as the whole message does.
    alone = TensorProto()
    alone.CopyFrom(tensor)
    load_external_data_for_tensor(alone, str(folder))
    return bytes(alone.raw_data)
