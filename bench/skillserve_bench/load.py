"""A closed loop: so many clients at once, each sending its next request as soon as the last one is answered.

One asyncio process sends messages that were serialised beforehand and keeps the answers as bytes until the
clock has stopped, so that what is measured is the server. What the process itself used is reported all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc  # type: ignore[import-untyped]  # ships no type information
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from skillserve.tensors import ATTENTION_MASK, INPUT_IDS, Ids
from skillserve_client.faults import translate
from skillserve_client.wire import Floats, ServedModel, collect, encode

__all__ = ["Loop", "closed_loop", "messages", "rows"]

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_CONNECT_S = 10


@dataclass(frozen=True, slots=True)
class Loop:
    """What one run of a closed loop brought."""

    answers: list[bytes]
    """Serialised responses, in the order of the messages."""
    wall_s: float

    @property
    def per_s(self) -> float:
        """Requests answered a second."""
        return len(self.answers) / self.wall_s


def messages(model: ServedModel, sequences: Sequence[Ids], *, pad_to: int | None = None) -> list[bytes]:
    """One serialised request for each sequence; `pad_to` fills a padded model's rows up to that length."""
    serialised = []
    for sequence in sequences:
        tensors = encode([sequence], model)
        if pad_to is not None:
            tensors = {name: _padded(tensors[name], pad_to) for name in (INPUT_IDS, ATTENTION_MASK)}
        request = service_pb2.ModelInferRequest(model_name=model.name, model_version=model.version)
        for name, tensor in tensors.items():
            request.inputs.add(name=name, datatype="INT32", shape=tensor.shape)
            request.raw_input_contents.append(tensor.tobytes())
        serialised.append(request.SerializeToString())
    return serialised


def rows(answers: Sequence[bytes], model: ServedModel) -> Floats:
    """The rows of answers to one sequence each, `[n, D]`; RequestRejected where one is not finite."""
    found = []
    for answer in answers:
        response = service_pb2.ModelInferResponse.FromString(answer)
        row = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)
        found.append(collect(row, 1, model))
    return np.concatenate(found)


def closed_loop(url: str, requests: Sequence[bytes], *, num_clients: int) -> Loop:
    """Send every request once, `num_clients` at a time; raises ServerError if one fails."""
    return asyncio.run(_closed_loop(url, requests, num_clients))


async def _closed_loop(url: str, requests: Sequence[bytes], num_clients: int) -> Loop:
    answers: list[bytes] = [b""] * len(requests)
    waiting = iter(enumerate(requests))
    async with grpc.aio.insecure_channel(url) as channel:
        send = channel.unary_unary(_METHOD)

        async def client() -> None:
            for i, request in waiting:
                answers[i] = await send(request)

        try:
            await asyncio.wait_for(channel.channel_ready(), _CONNECT_S)
            begin = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(num_clients):
                    group.create_task(client())
            wall_s = time.perf_counter() - begin
        except TimeoutError as error:
            raise translate("UNAVAILABLE", f"no connection in {_CONNECT_S} s", subject=f"server at {url}") from error
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            if not isinstance(first, grpc.aio.AioRpcError):
                raise
            raise translate(str(first.code()), first.details(), subject=f"server at {url}") from first
    return Loop(answers, wall_s)


def _padded(tensor: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.int32]:
    """`[1, L]` filled up with zeros to `[1, length]`: padding's id and mask are both 0."""
    return np.pad(tensor, ((0, 0), (0, length - tensor.shape[1])))
