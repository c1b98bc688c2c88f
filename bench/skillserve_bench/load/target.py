"""What a load is sent to: a `Target` opens a connection in a load process and answers payloads.

One model is here, the whole search in `search.py`, and a peer is one more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import grpc  # type: ignore[import-untyped]  # ships no type information

from skillserve.settings import ClientSettings
from skillserve_bench.messages import rows
from skillserve_client import ServedModel
from skillserve_client.faults import translate
from skillserve_client.triton import open_channel

__all__ = ["InferTarget", "Send", "Target"]

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_CONNECT_S = 10
_UNBOUNDED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

Send = Callable[[bytes], Awaitable[bytes]]
"""Sends one payload and returns the answer; raises SkillserveError."""


class Target(Protocol):
    """Travels to the load processes by pickle; equal ones share a connection, so it is hashable."""

    def open(self) -> AbstractAsyncContextManager[Send]:
        """Connect, and hand over the way to send; raises SkillserveError if nobody answers."""
        ...


@dataclass(frozen=True, slots=True)
class InferTarget:
    """One model behind the wire contract; payloads are requests serialised beforehand."""

    client: ClientSettings
    model: ServedModel

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Send]:
        """One channel. Every answer is read as the client reads it; a row that is not finite is RequestRejected."""
        subject = f"server at {self.client.url}"
        async with open_channel(self.client, _UNBOUNDED) as channel:
            call = channel.unary_unary(_METHOD)

            async def send(payload: bytes) -> bytes:
                try:
                    answer: bytes = await call(payload, timeout=self.client.timeout_s)
                except grpc.aio.AioRpcError as error:
                    raise translate(str(error.code()), error.details(), subject=subject) from error
                rows([answer], self.model)
                return answer

            await _ready(channel, subject)
            yield send


async def _ready(channel: grpc.aio.Channel, subject: str) -> None:
    try:
        await asyncio.wait_for(channel.channel_ready(), _CONNECT_S)
    except TimeoutError as error:
        raise translate("UNAVAILABLE", f"no connection in {_CONNECT_S} s", subject=subject) from error
