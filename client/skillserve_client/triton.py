"""The one door to Triton: a blocking and an asyncio client that share everything but the waiting."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc  # type: ignore[import-untyped]  # ships no type information
import numpy as np
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as waiting
from tritonclient.utils import InferenceServerException

from skillserve.errors import RepositoryError, ServerUnreachable, SkillserveError
from skillserve.settings import ClientSettings
from skillserve.tensors import MODEL_NAMES, OUTPUT_NAMES, Ids, Role
from skillserve_client.calls import Calls
from skillserve_client.faults import Attempts, translate
from skillserve_client.slots import Slots
from skillserve_client.tls import read_pem
from skillserve_client.wire import Floats, Progress, ServedModel, Statistics, collect, cut, encode, require_digest

__all__ = ["AsyncTriton", "Triton", "open_channel"]

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
    # Not a pause, whatever its name says: how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

_SERVER_NAME = "grpc.ssl_target_name_override"
_IN_TURN = ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))
"""Calls go to all addresses in turn, past those that are down; by default to the first one that answers."""

_VENDOR_ERRORS = (InferenceServerException, grpc.RpcError, grpc.aio.UsageError, ValueError)
"""What a call may raise; ValueError and UsageError come from a channel that was closed."""


def open_channel(settings: ClientSettings, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """A channel of gRPC's own, such as a load generator's, to the same servers in the same way as the clients'.

    Raises ConfigError for an address, or a file of TLS, that does not do.
    """
    calls = Calls(settings)
    target, secret, options = calls.targets[0], _credentials(settings), [*options, *_asked_for(calls)]
    if secret is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, secret, options=options)


def _credentials(settings: ClientSettings) -> grpc.ChannelCredentials | None:
    pem = read_pem(settings)
    return pem and grpc.ssl_channel_credentials(pem.authorities, pem.key, pem.certificate)


def _asked_for(calls: Calls) -> list[tuple[str, str]]:
    """Channel arguments that depend on the settings: who is called in turn, and whose certificate is expected."""
    name = calls.settings.tls_server_name
    return [*([_IN_TURN] if calls.several else []), *([(_SERVER_NAME, name)] if name else [])]


class _Requests(Calls):
    """Everything about a call except sending it."""

    def channel(self, target: str) -> dict[str, Any]:
        """Arguments of either client of tritonclient, for one of the targets."""
        return {
            "url": target,
            "creds": _credentials(self.settings),
            "channel_args": [*_CHANNEL_ARGS, *_asked_for(self)],
        }

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

    def rows(self, result: blocking.InferResult, sequences: Sequence[Ids], model: ServedModel) -> Floats:
        """The rows of one result."""
        return collect(result.as_numpy(OUTPUT_NAMES[model.role]), model.num_rows(sequences), model)

    def error(self, error: Exception) -> SkillserveError:
        """Translate whatever a call raised."""
        if isinstance(error, InferenceServerException):
            ours = translate(error.status(), error.message(), subject=self.subject)
        elif isinstance(error, grpc.RpcError):
            ours = translate(str(error.code()), error.details(), subject=self.subject)
        else:
            ours = self.closed(str(error))
        if isinstance(ours, ServerUnreachable | RepositoryError):
            self.forget()
        return ours


class Triton:
    """A blocking client; safe to share between threads. Close it, or use it in a `with` block.

    >>> with Triton(ClientSettings(url="127.0.0.1:8001")) as triton:  # doctest: +SKIP
    ...     vectors = triton.infer("embedder", [np.array([101, 7592, 102], np.int32)])
    """

    def __init__(self, settings: ClientSettings | None = None) -> None:
        self._requests = _Requests(settings or ClientSettings())
        self._client, *self._replicas = [
            blocking.InferenceServerClient(**self._requests.channel(target)) for target in self._requests.targets
        ]
        self._slots = Slots(self._requests.settings.num_in_flight)

    def served(self, role: Role) -> ServedModel:
        """Describe the model of a role, asked anew each time; raises RepositoryError if there is none."""
        deadline = self._requests.moment(None)
        return self._call(lambda: self._describe(role, deadline), deadline)

    def infer(
        self,
        role: Role,
        sequences: Sequence[Ids],
        *,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        digest: str | None = None,
    ) -> Floats:
        """Embeddings `[n, D]`, scores `[n]` or token embeddings `[T, D]`, in the order of the sequences.

        `timeout_s` bounds the whole call. Without it each request may take the settings' timeout, times the
        number in flight, since a server that works through them in turn lets the last one wait for the others.
        All calls of a client share its `num_in_flight`, in the order in which they ask. After a failure nothing
        more is sent. With `digest`, a server that runs another model is a BundleError.
        """
        deadline = None if timeout_s is None else self._requests.moment(timeout_s)
        first = self._requests.moment(None) if deadline is None else deadline
        model = self._call(lambda: self._model(role, digest, first), first)
        if not sequences:
            return model.no_rows()
        slices = cut(sequences, model, self._requests.settings.max_request_tokens)
        beside = self._requests.num_beside(slices)

        def part(chosen: slice) -> Floats:
            moment = self._requests.moment(None, num_beside=beside) if deadline is None else deadline
            with self._slot(moment):
                return self._call(lambda: self._send(role, sequences[chosen], digest, moment), moment)

        if len(slices) == 1:
            rows = part(slices[0])
            if progress:
                progress(len(sequences))
            return rows
        # Threads of this call alone: in a shared pool, one call would stand behind all of another's requests.
        pool = ThreadPoolExecutor(beside, thread_name_prefix="skillserve")
        parts: list[Floats] = []
        try:
            for chosen, future in [(chosen, pool.submit(part, chosen)) for chosen in slices]:
                parts.append(future.result())
                if progress:
                    progress(chosen.stop - chosen.start)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return np.concatenate(parts)

    def statistics(self, role: Role) -> Statistics:
        """Totals of a model since the server started, of a list of replicas their sum.

        Raises ServerError where one of them does not answer: two sums of different servers have no difference. Behind
        a DNS name of several, whichever is its turn answers.
        """
        deadline, left = self._requests.moment(None), self._requests.remaining
        name = MODEL_NAMES[role]

        def ask(client: blocking.InferenceServerClient) -> Any:  # noqa: ANN401 -- protobuf's
            return self._call(lambda: client.get_inference_statistics(name, client_timeout=left(deadline)), deadline)

        return Statistics.from_messages([ask(client) for client in self._replicas or [self._client]])

    def server(self) -> str:
        """Name and version of the server, such as `triton 2.51.0`."""
        deadline, left = self._requests.moment(None), self._requests.remaining
        found = self._call(lambda: self._client.get_server_metadata(client_timeout=left(deadline)), deadline)
        return f"{found.name} {found.version}"

    def close(self) -> None:
        """Close the connection; calls that are still waiting fail."""
        for client in (self._client, *self._replicas):
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _model(self, role: Role, digest: str | None, deadline: float) -> ServedModel:
        model = self._requests.known(role) or self._describe(role, deadline)
        require_digest(model, digest, subject=self._requests.subject)
        return model

    def _describe(self, role: Role, deadline: float) -> ServedModel:
        name, left = MODEL_NAMES[role], self._requests.remaining
        found, failed = [], []
        asked = self._replicas or [self._client]
        for client in asked:
            try:
                config = client.get_model_config(name, client_timeout=left(deadline) / len(asked))
                metadata = client.get_model_metadata(name, client_timeout=left(deadline) / len(asked))
                found.append(self._requests.described(role, config.config, metadata))
            except _VENDOR_ERRORS as error:
                failed.append(error)
        return self._requests.agreed(role, found, failed)

    def _send(self, role: Role, sequences: Sequence[Ids], digest: str | None, deadline: float) -> Floats:
        """One attempt at one request; after a lost connection it begins with asking who is there."""
        model = self._model(role, digest, deadline)
        arguments = self._requests.arguments(model, sequences)
        result = self._client.infer(**arguments, client_timeout=self._requests.remaining(deadline))
        return self._requests.rows(result, sequences, model)

    @contextmanager
    def _slot(self, deadline: float) -> Iterator[None]:
        try:
            self._slots.take(self._requests.remaining(deadline))
        except TimeoutError as error:
            raise self._requests.full() from error
        try:
            yield
        finally:
            self._slots.give()

    def _call(self, attempt: Callable[[], Reply], deadline: float) -> Reply:
        attempts = Attempts()
        while True:
            try:
                return attempt()
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
        self._clients: list[waiting.InferenceServerClient] = []
        self._slots = asyncio.Semaphore(self._requests.settings.num_in_flight)
        self._closed = False

    async def served(self, role: Role) -> ServedModel:
        """As `Triton.served`."""
        deadline = self._requests.moment(None)
        return await self._call(lambda: self._describe(role, deadline), deadline)

    async def infer(
        self,
        role: Role,
        sequences: Sequence[Ids],
        *,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        digest: str | None = None,
    ) -> Floats:
        """As `Triton.infer`; cancelling it cancels what is in flight."""
        deadline = None if timeout_s is None else self._requests.moment(timeout_s)
        first = self._requests.moment(None) if deadline is None else deadline
        model = await self._call(lambda: self._model(role, digest, first), first)
        if not sequences:
            return model.no_rows()
        slices = cut(sequences, model, self._requests.settings.max_request_tokens)
        beside = self._requests.num_beside(slices)
        parts: dict[int, Floats] = {}
        queue = iter(enumerate(slices))

        async def work() -> None:
            for i, chosen in queue:  # shared by the workers, so that one call never has more than them in line
                moment = self._requests.moment(None, num_beside=beside) if deadline is None else deadline
                async with self._slot(moment):
                    send = functools.partial(self._send, role, sequences[chosen], digest, moment)
                    parts[i] = await self._call(send, moment)
                if progress:
                    progress(chosen.stop - chosen.start)

        tasks = [asyncio.create_task(work()) for _ in range(beside)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return np.concatenate([parts[i] for i in range(len(slices))])

    async def statistics(self, role: Role) -> Statistics:
        """As `Triton.statistics`."""
        deadline, left = self._requests.moment(None), self._requests.remaining
        name = MODEL_NAMES[role]

        async def ask(client: waiting.InferenceServerClient) -> Any:  # noqa: ANN401 -- protobuf's
            return await self._call(
                lambda: client.get_inference_statistics(name, client_timeout=left(deadline)), deadline
            )

        return Statistics.from_messages([await ask(client) for client in self._open()[1:] or self._open()])

    async def server(self) -> str:
        """As `Triton.server`."""
        deadline, left = self._requests.moment(None), self._requests.remaining
        found = await self._call(lambda: self._open()[0].get_server_metadata(client_timeout=left(deadline)), deadline)
        return f"{found.name} {found.version}"

    async def close(self) -> None:
        """Close the connection; calls that are still waiting fail."""
        self._closed = True
        for client in self._clients:
            await client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _model(self, role: Role, digest: str | None, deadline: float) -> ServedModel:
        model = self._requests.known(role) or await self._describe(role, deadline)
        require_digest(model, digest, subject=self._requests.subject)
        return model

    async def _describe(self, role: Role, deadline: float) -> ServedModel:
        name, left = MODEL_NAMES[role], self._requests.remaining
        found, failed = [], []
        asked = self._open()[1:] or self._open()
        for client in asked:
            try:
                config = await client.get_model_config(name, client_timeout=left(deadline) / len(asked))
                metadata = await client.get_model_metadata(name, client_timeout=left(deadline) / len(asked))
                found.append(self._requests.described(role, config.config, metadata))
            except _VENDOR_ERRORS as error:
                failed.append(error)
        return self._requests.agreed(role, found, failed)

    async def _send(self, role: Role, sequences: Sequence[Ids], digest: str | None, deadline: float) -> Floats:
        model = await self._model(role, digest, deadline)
        arguments = self._requests.arguments(model, sequences)
        result = await self._open()[0].infer(**arguments, client_timeout=self._requests.remaining(deadline))
        return self._requests.rows(result, sequences, model)

    @asynccontextmanager
    async def _slot(self, deadline: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._requests.remaining(deadline)):
                await self._slots.acquire()
        except TimeoutError as error:
            raise self._requests.full() from error
        try:
            yield
        finally:
            self._slots.release()

    def _open(self) -> list[waiting.InferenceServerClient]:
        """The client, and one for each replica if there are several."""
        if not self._clients:  # made here and not in __init__: gRPC binds it to the running loop
            self._clients = [
                waiting.InferenceServerClient(**self._requests.channel(target)) for target in self._requests.targets
            ]
        return self._clients

    async def _call(self, attempt: Callable[[], Awaitable[Reply]], deadline: float) -> Reply:
        attempts = Attempts()
        while True:
            try:
                return await attempt()
            except asyncio.CancelledError as cause:
                task = asyncio.current_task()
                if not self._closed or (task is not None and task.cancelling()):
                    raise
                # gRPC cancels what is in flight when its channel is closed; our caller was not cancelled.
                raise self._requests.closed("the connection closed during the call") from cause
            except _VENDOR_ERRORS as cause:
                error = self._requests.error(cause)
                pause = attempts.pause_before_retry(error, deadline - time.monotonic())
                if pause is None:
                    raise error from cause
            await asyncio.sleep(pause)
