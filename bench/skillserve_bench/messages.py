"""Requests of the wire contract, serialised before the clock starts, and their answers, read after it has stopped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from skillserve.tensors import ATTENTION_MASK, INPUT_IDS, Ids
from skillserve_client.wire import Floats, ServedModel, collect, encode

__all__ = ["messages", "rows"]


def messages(model: ServedModel, groups: Iterable[Sequence[Ids]], *, pad_to: int | None = None) -> list[bytes]:
    """One serialised request for each group of sequences; `pad_to` fills a padded model's rows up to that length."""
    serialised = []
    for group in groups:
        tensors = encode(group, model)
        if pad_to is not None:
            tensors = {name: _padded(tensors[name], pad_to) for name in (INPUT_IDS, ATTENTION_MASK)}
        request = service_pb2.ModelInferRequest(model_name=model.name, model_version=model.version)
        for name, tensor in tensors.items():
            request.inputs.add(name=name, datatype="INT32", shape=tensor.shape)
            request.raw_input_contents.append(tensor.tobytes())
        serialised.append(request.SerializeToString())
    return serialised


def rows(answers: Sequence[bytes], model: ServedModel) -> Floats:
    """The rows of answers, one behind the other, `[n, D]` or `[n]`; RequestRejected where one is not finite."""
    found = []
    for answer in answers:
        response = service_pb2.ModelInferResponse.FromString(answer)
        shape = list(response.outputs[0].shape)
        num = shape[1] if model.layout == "packed" else shape[0]
        row = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(shape)
        found.append(collect(row, num, model))
    return np.concatenate(found)


def _padded(tensor: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.int32]:
    """`[B, L]` filled up with zeros to `[B, length]`: padding's id and mask are both 0."""
    return np.pad(tensor, ((0, 0), (0, length - tensor.shape[1])))
