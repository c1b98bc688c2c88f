"""What a load is sent to. A peer is one more `Target`: it opens a connection in a load process and answers payloads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import grpc  # type: ignore[import-untyped]  # ships no type information

from skillserve.errors import ServerError
from skillserve.settings import ClientSettings, IndexSettings, SearchSettings
from skillserve_bench.messages import rows
from skillserve_client import ServedModel
from skillserve_client.bundle import open_bundle
from skillserve_client.faults import translate
from skillserve_client.search import AsyncSearcher
from skillserve_client.triton import AsyncTriton, open_channel

__all__ = ["InferTarget", "SearchTarget", "Send", "Target"]

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


@dataclass(frozen=True, slots=True)
class SearchTarget:
    """The whole search, text in to hits out, through the client; payloads are requests in UTF-8."""

    client: ClientSettings
    index: IndexSettings
    """Where the bundle is, and the vectors if they are elsewhere."""
    search: SearchSettings
    by_pairs: bool = False
    """Rerank by pairs, though the bundle may keep token embeddings: of a server that has no model for them."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Send]:
        """One searcher with a bundle of its own in memory; an answer is the ids of its hits.

        An answer that was not reranked because the reranker failed is a ServerError: it would pass for a fast one.
        """
        async with AsyncTriton(self.client) as triton:
            bundle = open_bundle(self.index.bundles, index=self.index)
            if self.by_pairs:
                bundle = replace(bundle, corpus=replace(bundle.corpus, tokens=None))
            searcher = AsyncSearcher(bundle, triton, self.search)
            await searcher.check()

            async def send(payload: bytes) -> bytes:
                answer = await searcher.search(payload.decode())
                if answer.status == "degraded":
                    raise ServerError(
                        "search",
                        got=f"a degraded answer: {'; '.join(answer.notes)}",
                        wanted="a reranked one",
                        fix="Read the server's log, then check the models: skillserve verify",
                    )
                return "\n".join(hit.skill_id for hit in answer.hits or answer.near_misses).encode()

            yield send


async def _ready(channel: grpc.aio.Channel, subject: str) -> None:
    try:
        await asyncio.wait_for(channel.channel_ready(), _CONNECT_S)
    except TimeoutError as error:
        raise translate("UNAVAILABLE", f"no connection in {_CONNECT_S} s", subject=subject) from error
