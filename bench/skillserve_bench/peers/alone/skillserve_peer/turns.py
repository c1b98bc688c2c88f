"""From an engine to a search: one at a time, as a library in a process works, or many at once, as a server does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from .catalogue import Catalogue, Floats
from .job import Request
from .lines import Late, Search

__all__ = ["Blocking", "Concurrent", "at_once", "in_turn"]


class Blocking(Protocol):
    """An engine in this process; it computes on all threads it was given, for one search at a time."""

    def embed(self, text: str) -> Floats:
        """Embedding `[D]` of a request."""
        ...

    def score(self, request: str, texts: Sequence[str]) -> Floats | None:
        """Logits `[n]` of a request with skills; None without a reranker."""
        ...


class Concurrent(Protocol):
    """An engine that is a server, which joins what comes together."""

    async def embed(self, text: str) -> Floats:
        """Embedding `[D]` of a request."""
        ...

    async def score(self, request: str, texts: Sequence[str]) -> Floats | None:
        """Logits `[n]` of a request with skills; None without a reranker."""
        ...


def in_turn(engine: Blocking, catalogue: Catalogue) -> Search:
    """Searches in the order in which they came, each alone."""
    worker = ThreadPoolExecutor(1)

    def search(request: Request, deadline_ns: int) -> list[str]:
        if time.monotonic_ns() > deadline_ns:
            raise Late
        similarities, rows = catalogue.candidates(engine.embed(request.embed))
        return catalogue.answer(rows, similarities, engine.score(request.rerank, catalogue.texts(rows)))

    async def waiting(request: Request, deadline_ns: int) -> list[str]:
        return await asyncio.get_running_loop().run_in_executor(worker, search, request, deadline_ns)

    return waiting


def at_once(engine: Concurrent, catalogue: Catalogue) -> Search:
    """All searches at once."""

    async def search(request: Request, deadline_ns: int) -> list[str]:
        if time.monotonic_ns() > deadline_ns:
            raise Late
        similarities, rows = catalogue.candidates(await engine.embed(request.embed))
        return catalogue.answer(rows, similarities, await engine.score(request.rerank, catalogue.texts(rows)))

    return search
