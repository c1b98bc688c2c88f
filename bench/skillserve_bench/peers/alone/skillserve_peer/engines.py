"""Engine → what opens it; a library is imported only by the engine that was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from .catalogue import Catalogue
from .job import Job
from .lines import Search
from .turns import at_once, in_turn

__all__ = ["ENGINES", "Opener"]

Opener = Callable[[Job], AbstractAsyncContextManager[Search]]


def _sentence_transformers(backend: str) -> Opener:
    @asynccontextmanager
    async def opened(job: Job) -> AsyncIterator[Search]:
        from .encoders import Encoders

        yield in_turn(Encoders(job, backend), Catalogue(job))

    return opened


@asynccontextmanager
async def _int8(job: Job) -> AsyncIterator[Search]:
    from .int8 import Int8

    yield in_turn(Int8(job), Catalogue(job))


@asynccontextmanager
async def _infinity(job: Job) -> AsyncIterator[Search]:
    from .infinity import running

    async with running(job) as engine:
        yield at_once(engine, Catalogue(job))


ENGINES: dict[str, Opener] = {
    "torch": _sentence_transformers("torch"),
    "onnx": _sentence_transformers("onnx"),
    "openvino": _sentence_transformers("openvino"),
    "int8": _int8,
    "infinity": _infinity,
}
