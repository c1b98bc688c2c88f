"""The whole search as the target of a load: text in to hits out, in a process of its own beside each load process.

A search computes: it tokenizes, ranks candidates, compares token embeddings. Threads that did so in the process that
keeps a schedule would be pushed aside by the server's while they hold the interpreter, and the next request would start
late, however urgent. It is also how peers are asked, by somebody who does nothing else.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

from skillserve.errors import ServerError, ServerUnreachable, SkillserveError
from skillserve.settings import ClientSettings, IndexSettings, SearchSettings
from skillserve_bench.load.exchange import Exchange, opened_exchange
from skillserve_bench.load.target import Send
from skillserve_client.bundle import open_bundle
from skillserve_client.search import AsyncSearcher
from skillserve_client.triton import AsyncTriton

__all__ = ["SearchTarget"]

_STOP_S = 5
_LEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class SearchTarget:
    """The whole search, through the client; payloads are requests in UTF-8, an answer is the ids of its hits."""

    client: ClientSettings
    index: IndexSettings
    """Where the bundle is, and the vectors if they are elsewhere."""
    search: SearchSettings
    by_pairs: bool = False
    """Rerank by pairs, though the bundle may keep token embeddings: of a server that has no model for them."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Send]:
        """Start the process, with a bundle of its own in memory; raises what keeps it from searching."""
        ours, theirs = socket.socketpair()
        process = multiprocessing.get_context("spawn").Process(target=_searching, args=(theirs, self), daemon=True)
        process.start()
        theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        gone = partial(_gone, process)
        try:
            await _ready(reader, gone)
            async with opened_exchange(partial(_received, reader), gone) as exchange:
                yield partial(_asked, exchange, writer)
        finally:
            writer.close()
            await asyncio.to_thread(process.join, _STOP_S)
            if process.is_alive():
                process.kill()

    @asynccontextmanager
    async def searcher(self) -> AsyncIterator[Send]:
        """A searcher in this process.

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


async def _ready(reader: asyncio.StreamReader, gone: Callable[[], SkillserveError]) -> None:
    """Wait until it can search; raises what it said instead."""
    try:
        problem = await _received(reader)
    except (EOFError, ConnectionError) as error:
        raise gone() from error
    if isinstance(problem, SkillserveError):
        raise problem


async def _asked(exchange: Exchange, writer: asyncio.StreamWriter, payload: bytes) -> bytes:
    """One search; that of a sender who leaves is given up there, too."""
    with exchange.expected() as (number, answer):
        writer.write(_framed((number, payload)))
        try:
            return await answer
        except asyncio.CancelledError:
            writer.write(_framed((number, None)))
            raise


def _gone(process: BaseProcess) -> ServerUnreachable:
    process.join(_STOP_S)  # its connection ended, and so does it
    return ServerUnreachable(
        "process that searches",
        got=f"its end, exit code {process.exitcode}",
        wanted="answers",
        fix="Read what it said, or the kernel's log (out of memory?), then start the measurement again.",
    )


def _searching(connection: socket.socket, target: SearchTarget) -> None:
    """Body of the process, until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in load processes, whose parent decides what it means
    asyncio.run(_answering(connection, target))


async def _answering(connection: socket.socket, target: SearchTarget) -> None:
    """Say None, or why not, then answer; requests run at once, and what is not our error ends the process."""
    reader, writer = await asyncio.open_connection(sock=connection)
    running: dict[int, asyncio.Task[None]] = {}
    async with AsyncExitStack() as stack:
        try:
            search = await stack.enter_async_context(target.searcher())
        except SkillserveError as error:
            writer.write(_framed(error))
            with suppress(ConnectionError):  # the load process is gone
                await writer.drain()
            return
        writer.write(_framed(None))

        async def answer(number: int, payload: bytes) -> None:
            found: bytes | SkillserveError
            try:
                found = await search(payload)
            except SkillserveError as error:
                found = error
            writer.write(_framed((number, found)))

        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        with suppress(EOFError, ConnectionError):
            while True:
                number, payload = await _received(reader)
                if payload is not None:
                    running[number] = task = tasks.create_task(answer(number, payload))
                    task.add_done_callback(partial(_forget, running, number))
                elif number in running:
                    running[number].cancel()
        for task in running.values():
            task.cancel()


def _forget(running: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    running.pop(number)


def _framed(message: object) -> bytes:
    """Both ends are this program's own, so that pickle is no door to anybody."""
    body = pickle.dumps(message)
    return len(body).to_bytes(_LEN_BYTES) + body


async def _received(reader: asyncio.StreamReader) -> Any:  # noqa: ANN401 -- whatever was framed
    """The next message; raises EOFError or ConnectionError at the end of the connection."""
    num_bytes = int.from_bytes(await reader.readexactly(_LEN_BYTES))
    return pickle.loads(await reader.readexactly(num_bytes))  # noqa: S301
