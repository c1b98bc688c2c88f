"""The one door to Triton: a blocking and an asyncio client that share everything but the waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc  # type: ignore[import-untyped]  # ships no type information
import numpy as np
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as waiting
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from skillserve.config import ClientSettings
from skillserve.errors import ConfigError, DeadlineExceeded, ServerUnreachable, SkillserveError
from skillserve.tensors import MODEL_NAMES, OUTPUT_NAMES, Ids, Role
from skillserve_client.faults import Attempts, translate
from skillserve_client.wire import Floats, Progress, ServedModel, Statistics, collect, cut, encode

__all__ = ["AsyncTriton", "Triton"]

Reply = TypeVar("Reply")

_CHANNEL_ARGS = [
    # These replace tritonclient's defaults altogether, so the message sizes stand here again.
    ("grpc.max_send_message_length", blocking.MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", blocking.MAX_GRPC_MESSAGE_SIZE),
    # Two pings find a dead peer during a call; more, or any while idle, and Triton hangs up ("too many pings").
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 2),
    # A lost connection is dialled again within our own pauses; the default waits a second.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

_VENDOR_ERRORS = (InferenceServerException, grpc.RpcError, grpc.aio.UsageError, ValueError)
"""What a call may raise; ValueError and UsageError come from a channel that was closed."""


class _Requests:
    """Everything about a call except sending it."""

    def __init__(self, settings: ClientSettings) -> None:
        if "://" in settings.url or ":" not in settings.url:
            raise ConfigError(
                "setting client.url",
                got=repr(settings.url),
                wanted="host:port of the server's gRPC port, without a scheme",
                fix="For example: --url 127.0.0.1:8001",
            )
        self.settings = settings
        self.subject = f"server at {settings.url}"
        self.models: dict[Role, ServedModel] = {}

    def described(
        self, role: Role, config: model_config_pb2.ModelConfig, metadata: service_pb2.ModelMetadataResponse
    ) -> ServedModel:
        """Read the configuration and metadata messages of a model."""
        model = ServedModel.from_config(
            role,
            version=max(metadata.versions, key=int, default=""),
            parameters={key: value.string_value for key, value in config.parameters.items()},
            output_dims=config.output[0].dims,
            max_batch_size=config.max_batch_size,
        )
        self.models[role] = model
        return model

    def arguments(self, model: ServedModel, sequences: Sequence[Ids]) -> dict[str, Any]:
        """Keyword arguments of tritonclient's `infer`."""
        inputs = []
        for name, tensor in encode(sequences, model).items():
            item = blocking.InferInput(name, tensor.shape, "INT32")
            item.set_data_from_numpy(tensor)
            inputs.append(item)
        # The version is pinned: a newer one may be another model, and its vectors would fit no bundle.
        return {
            "model_name": model.name,
            "model_version": model.version,
            "inputs": inputs,
        }

    def rows(self, result: blocking.InferResult, num: int, model: ServedModel) -> Floats:
        """The rows of one result."""
        return collect(result.as_numpy(OUTPUT_NAMES[model.role]), num, model)

    def error(self, error: Exception) -> SkillserveError:
        """Translate whatever a call raised."""
        if isinstance(error, InferenceServerException):
            return translate(error.status(), error.message(), subject=self.subject)
        if isinstance(error, grpc.RpcError):
            return translate(str(error.code()), error.details(), subject=self.subject)
        return ServerUnreachable(
            self.subject, got=str(error), wanted="an open connection", fix="Connect again: this client was closed."
        )

    def remaining(self, deadline: float) -> float:
        """Seconds until the deadline (a monotonic moment); raises DeadlineExceeded when there are none."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                self.subject,
                got="no time left to send the request",
                wanted="an answer in time",
                fix="Allow more time (--timeout-s).",
            )
        return left

    def moment(self, timeout_s: float | None, *, num_beside: int = 1) -> float:
        """The deadline of a call that starts now, beside others of ours that the server may answer before it."""
        return time.monotonic() + (self.settings.timeout_s * num_beside if timeout_s is None else timeout_s)

    def num_beside(self, slices: Sequence[slice]) -> int:
        """Requests of one bulk call that are in flight together."""
        return min(self.settings.num_in_flight, len(slices))

    def statistics(self, message: service_pb2.ModelStatisticsResponse) -> Statistics:
        """Sum a statistics message over the versions of its model."""
        rows = message.model_stats
        return Statistics(
            num_requests=sum(row.inference_stats.success.count for row in rows),
            num_failed=sum(row.inference_stats.fail.count for row in rows),
            num_executions=sum(row.execution_count for row in rows),
            queue_ms=sum(row.inference_stats.queue.ns for row in rows) / 1e6,
            compute_ms=sum(row.inference_stats.compute_infer.ns for row in rows) / 1e6,
        )


class Triton:
    """A blocking client; safe to share between threads. Close it, or use it in a `with` block.

    >>> with Triton(ClientSettings(url="127.0.0.1:8001")) as triton:  # doctest: +SKIP
    ...     vectors = triton.infer("embedder", [np.array([101, 7592, 102], np.int32)])
    """

    def __init__(self, settings: ClientSettings | None = None) -> None:
        self._requests = _Requests(settings or ClientSettings())
        self._client = blocking.InferenceServerClient(self._requests.settings.url, channel_args=_CHANNEL_ARGS)
        self._pool = ThreadPoolExecutor(self._requests.settings.num_in_flight, thread_name_prefix="skillserve")

    def served(self, role: Role) -> ServedModel:
        """Describe the model of a role, asked anew each time; raises RepositoryError if there is none."""
        deadline = self._requests.moment(None)
        config = self._call(
            lambda left: self._client.get_model_config(MODEL_NAMES[role], client_timeout=left), deadline
        )
        metadata = self._call(
            lambda left: self._client.get_model_metadata(MODEL_NAMES[role], client_timeout=left), deadline
        )
        return self._requests.described(role, config.config, metadata)

    def infer(
        self,
        role: Role,
        sequences: Sequence[Ids],
        *,
        timeout_s: float | None = None,
        progress: Progress | None = None,
    ) -> Floats:
        """Embeddings `[n, D]` or scores `[n]`, in the order of the sequences.

        `timeout_s` bounds the whole call. Without it each request may take the settings' timeout, times the
        number in flight, since a server that works through them in turn lets the last one wait for the others.
        After a failure nothing more is sent.
        """
        model = self._requests.models.get(role) or self.served(role)
        if not sequences:
            return model.no_rows()
        slices = cut(sequences, model, self._requests.settings.max_request_tokens)
        deadline = None if timeout_s is None else self._requests.moment(timeout_s)
        if len(slices) == 1:
            rows = self._send(model, sequences, deadline, 1)
            if progress:
                progress(len(sequences))
            return rows
        beside = self._requests.num_beside(slices)
        futures: list[Future[Floats]] = [
            self._pool.submit(self._send, model, sequences[s], deadline, beside) for s in slices
        ]
        parts: list[Floats] = []
        try:
            for future in futures:
                parts.append(future.result())
                if progress:
                    progress(len(parts[-1]))
        finally:
            for future in futures:
                future.cancel()
        return np.concatenate(parts)

    def statistics(self, role: Role) -> Statistics:
        """Totals of a model since the server started."""
        deadline = self._requests.moment(None)
        return self._requests.statistics(
            self._call(
                lambda left: self._client.get_inference_statistics(MODEL_NAMES[role], client_timeout=left), deadline
            )
        )

    def close(self) -> None:
        """Close the connection; calls that are still waiting fail."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, model: ServedModel, sequences: Sequence[Ids], deadline: float | None, beside: int) -> Floats:
        moment = self._requests.moment(None, num_beside=beside) if deadline is None else deadline
        arguments = self._requests.arguments(model, sequences)
        result = self._call(lambda left: self._client.infer(**arguments, client_timeout=left), moment)
        return self._requests.rows(result, len(sequences), model)

    def _call(self, send: Callable[[float], Reply], deadline: float) -> Reply:
        attempts = Attempts()
        while True:
            left = self._requests.remaining(deadline)
            try:
                return send(left)
            except _VENDOR_ERRORS as cause:
                error = self._requests.error(cause)
                pause = attempts.pause_before_retry(error, deadline - time.monotonic())
                if pause is None:
                    raise error from cause
            time.sleep(pause)


class AsyncTriton:
    """The same client for asyncio; use it in the loop that created it, in an `async with` block."""

    def __init__(self, settings: ClientSettings | None = None) -> None:
        self._requests = _Requests(settings or ClientSettings())
        self._client: waiting.InferenceServerClient | None = None

    async def served(self, role: Role) -> ServedModel:
        """As `Triton.served`."""
        deadline = self._requests.moment(None)
        config = await self._call(
            lambda left: self._open().get_model_config(MODEL_NAMES[role], client_timeout=left), deadline
        )
        metadata = await self._call(
            lambda left: self._open().get_model_metadata(MODEL_NAMES[role], client_timeout=left), deadline
        )
        return self._requests.described(role, config.config, metadata)

    async def infer(
        self,
        role: Role,
        sequences: Sequence[Ids],
        *,
        timeout_s: float | None = None,
        progress: Progress | None = None,
    ) -> Floats:
        """As `Triton.infer`; cancelling it cancels what is in flight."""
        model = self._requests.models.get(role) or await self.served(role)
        if not sequences:
            return model.no_rows()
        slices = cut(sequences, model, self._requests.settings.max_request_tokens)
        deadline = None if timeout_s is None else self._requests.moment(timeout_s)
        beside = self._requests.num_beside(slices)
        gate = asyncio.Semaphore(self._requests.settings.num_in_flight)

        async def part(chosen: slice) -> Floats:
            async with gate:
                rows = await self._send(model, sequences[chosen], deadline, beside)
            if progress:
                progress(len(rows))
            return rows

        tasks = [asyncio.create_task(part(chosen)) for chosen in slices]
        try:
            return np.concatenate(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def statistics(self, role: Role) -> Statistics:
        """As `Triton.statistics`."""
        deadline = self._requests.moment(None)
        return self._requests.statistics(
            await self._call(
                lambda left: self._open().get_inference_statistics(MODEL_NAMES[role], client_timeout=left), deadline
            )
        )

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, model: ServedModel, sequences: Sequence[Ids], deadline: float | None, beside: int) -> Floats:
        moment = self._requests.moment(None, num_beside=beside) if deadline is None else deadline
        arguments = self._requests.arguments(model, sequences)
        result = await self._call(lambda left: self._open().infer(**arguments, client_timeout=left), moment)
        return self._requests.rows(result, len(sequences), model)

    def _open(self) -> waiting.InferenceServerClient:
        if self._client is None:  # made here and not in __init__: gRPC binds it to the running loop
            self._client = waiting.InferenceServerClient(self._requests.settings.url, channel_args=_CHANNEL_ARGS)
        return self._client

    async def _call(self, send: Callable[[float], Awaitable[Reply]], deadline: float) -> Reply:
        attempts = Attempts()
        while True:
            left = self._requests.remaining(deadline)
            try:
                return await send(left)
            except _VENDOR_ERRORS as cause:
                error = self._requests.error(cause)
                pause = attempts.pause_before_retry(error, deadline - time.monotonic())
                if pause is None:
                    raise error from cause
            await asyncio.sleep(pause)
