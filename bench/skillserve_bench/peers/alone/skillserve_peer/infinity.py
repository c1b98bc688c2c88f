"""infinity's server in a process of its own, asked through its HTTP interface; it joins what comes together."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from .catalogue import Floats
from .job import Job

__all__ = ["running"]

_EMBEDDER, _RERANKER = "embedder", "reranker"
_READY_S = 300.0
_PAUSE_S = 0.2
_STOP_S = 10.0


class _Infinity:
    """A server that answers."""

    def __init__(self, session: aiohttp.ClientSession, *, reranks: bool) -> None:
        self._session, self._reranks = session, reranks

    async def embed(self, text: str) -> Floats:
        """Embedding `[D]` of a request."""
        found = await self._post("/embeddings", {"model": _EMBEDDER, "input": [text]})
        return np.asarray(found["data"][0]["embedding"], np.float32)

    async def score(self, request: str, texts: Sequence[str]) -> Floats | None:
        """Logits `[n]`; the server sorts them, and says where each belongs."""
        if not self._reranks:
            return None
        asked = {"model": _RERANKER, "query": request, "documents": list(texts), "raw_scores": True}
        found = await self._post("/rerank", asked)
        logits = np.empty(len(texts), np.float32)
        for result in found["results"]:
            logits[result["index"]] = result["relevance_score"]
        return logits

    async def _post(self, path: str, asked: dict[str, Any]) -> Any:  # noqa: ANN401 -- JSON
        async with self._session.post(path, json=asked) as answer:
            answer.raise_for_status()
            return await answer.json()


@asynccontextmanager
async def running(job: Job) -> AsyncIterator[_Infinity]:
    """Start the server for as long as the block runs; RuntimeError if it ends or stays silent."""
    port = _free_port()
    models = ["--model-id", str(job.embedder), "--served-model-name", _EMBEDDER]
    if job.reranker:
        models += ["--model-id", str(job.reranker), "--served-model-name", _RERANKER]
    # The environment of this daemon, which was made without the user's secrets.
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("infinity_emb")), "v2", *models),
        *("--engine", "torch", "--device", "cpu", "--dtype", "float32"),
        *("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"),
        env={**os.environ, "OMP_NUM_THREADS": str(job.threads), "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:
            await asyncio.wait_for(_ready(session, process), _READY_S)
            yield _Infinity(session, reranks=job.reranker is not None)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _ready(session: aiohttp.ClientSession, process: asyncio.subprocess.Process) -> None:
    while process.returncode is None:
        with suppress(aiohttp.ClientError):
            async with session.get("/health") as answer:
                if answer.ok:
                    return
        await asyncio.sleep(_PAUSE_S)
    raise RuntimeError(f"infinity ended with code {process.returncode} before it was ready")


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
