"""One index of one size: built by one process, then opened and searched by another, whose memory is its own.

What the first held and gave back would hide what the second needs. Before an index is opened, so was one of a row: the
library's code, which is read from its file when it is first used, is no memory of the index.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skillserve.errors import MissingExtraError, ServerError
from skillserve.lazy import load_target
from skillserve.settings import IndexSettings
from skillserve_bench.processor import tree_memory_mib
from skillserve_client.index import Structure
from skillserve_client.vectors import Entries, Identity, Mark, Rows
from skillserve_client.wire import Floats

if TYPE_CHECKING:
    from skillserve_client.milvus import MilvusStore

__all__ = ["MILVUS", "Built", "Order", "Served", "build", "serve", "why_no_milvus"]

MILVUS = "milvus-lite"

Search = Callable[[Floats, int], tuple[Floats, Rows]]

_INDEX, _ONE_ROW = "index.faiss", "one-row.faiss"
_COLLECTION = "capacity"
_AT_ONCE = 4_096
_SAMPLES = 256
"""Vectors from which the index of a row learns: what PQ has centroids for a byte."""
_WARM_UP, _LEAST, _MOST_S = 3, 5, 3.0
"""Searches before the clock runs; those that are timed at least, and for how long at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be measured."""

    kind: str
    rows: int
    vectors: Path
    """`[N, D]`, of which the first `rows` are taken."""
    queries: Path
    folder: Path
    """For the index alone."""
    top_k: int
    num_probes: int
    search_breadth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build took."""

    train_s: float
    """0 for a kind that learns nothing."""
    add_s: float
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What searches took."""

    memory_bytes: float
    """By which resident memory grew when the index was opened."""
    search_s: float
    """Of a lone search, the median."""
    batch_s: float
    """Of each search of many that are asked for at once."""
    places: Rows
    """`[q, K]`, of the first q queries."""


def build(order: Order) -> Built:
    """Build and write; in Milvus, insert."""
    vectors = np.load(order.vectors, mmap_mode="r")[: order.rows]
    train_s, add_s = (_inserted if order.kind == MILVUS else _structured)(order, vectors)
    files = [file for file in order.folder.rglob("*") if file.is_file()]
    built = Built(train_s=train_s, add_s=add_s, disk_bytes=sum(file.stat().st_size for file in files))
    if order.kind != MILVUS:
        small = _empty(order, vectors.shape[1], rows=1)
        if not small.trained:
            small.train(vectors[:_SAMPLES])
        small.add(vectors[:1])
        small.write(order.folder / _ONE_ROW)
    return built


def serve(order: Order) -> Served:
    """Open what was built, and search it."""
    queries = np.load(order.queries)
    with (_collection if order.kind == MILVUS else _read)(order, queries) as (search, memory_bytes):
        begin = time.perf_counter()
        for query in queries[:_WARM_UP]:
            if time.perf_counter() - begin < _MOST_S:
                search(query[None], order.top_k)
        lone: list[float] = []
        for query in queries:
            begin = time.perf_counter()
            search(query[None], order.top_k)
            lone.append(time.perf_counter() - begin)
            if len(lone) >= _LEAST and sum(lone) > _MOST_S:
                break
        search_s = statistics.median(lone)
        many = queries[: max(_LEAST, int(_MOST_S / search_s))]
        begin = time.perf_counter()
        places = search(many, order.top_k)[1]
        batch_s = (time.perf_counter() - begin) / len(many)
    return Served(memory_bytes=memory_bytes, search_s=search_s, batch_s=batch_s, places=places)


def why_no_milvus(folder: Path) -> str | None:
    """Why no collection can be made here, in a few words; None if one can."""
    try:
        with closing(_store(folder)):
            return None
    except (MissingExtraError, ServerError) as error:
        return error.got


def _structured(order: Order, vectors: Floats) -> tuple[float, float]:
    structure = _empty(order, vectors.shape[1], rows=order.rows)
    train_s = 0.0 if structure.trained else _seconds(lambda: structure.train(vectors))
    add_s = _seconds(lambda: structure.add(vectors))
    structure.write(order.folder / _INDEX)
    return train_s, add_s


def _empty(order: Order, dim: int, *, rows: int) -> Structure:
    return Structure.empty(order.kind, dim, rows=rows, num_probes=order.num_probes, search_breadth=order.search_breadth)


@contextmanager
def _read(order: Order, queries: Floats) -> Iterator[tuple[Search, float]]:  # noqa: ARG001 -- as `_collection`
    Structure.read(order.folder / _ONE_ROW)
    _resident_bytes()  # reading the figure takes memory, too, the first time
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's; else what was freed may hide a small index
        trim(0)
    before = _resident_bytes()
    structure = Structure.read(order.folder / _INDEX)
    yield structure.search, _resident_bytes() - before


def _inserted(order: Order, vectors: Floats) -> tuple[float, float]:
    identity = _identity(vectors.shape[1])
    with closing(_store(order.folder)) as store:
        store.create(_COLLECTION, identity)
        store.load(_COLLECTION, identity)
        index = store.index(_COLLECTION, identity)

        def insert() -> None:
            for start in range(0, order.rows, _AT_ONCE):
                block = vectors[start : start + _AT_ONCE]
                marks = {f"skill-{row:010d}": Mark(row, "", f"{row:064x}") for row in range(start, start + len(block))}
                index.upsert(Entries(marks, block))

        return 0.0, _seconds(insert)


@contextmanager
def _collection(order: Order, queries: Floats) -> Iterator[tuple[Search, float]]:
    identity = _identity(queries.shape[1])
    _door()  # what importing it takes is no memory of the index
    before = _memory_bytes()
    with closing(_store(order.folder)) as store:
        store.load(_COLLECTION, identity)
        index = store.index(_COLLECTION, identity, published=True)
        index.search(queries[:1], order.top_k)  # which makes it read what it had left on the disk
        yield index.search, _memory_bytes() - before


def _store(folder: Path) -> MilvusStore:
    return _door().connect(IndexSettings(uri=str(folder / "lite.db")), {})


def _door() -> type[MilvusStore]:
    door: type[MilvusStore] = load_target("skillserve_client.milvus:MilvusStore", extra="milvus", subject="Milvus Lite")
    return door


def _identity(dim: int) -> Identity:
    return Identity(embedder="0" * 64, tokenizer="0" * 64, dim=dim)


def _memory_bytes() -> float:
    """Of this process and those that it started."""
    return tree_memory_mib(os.getpid()) * 2**20


def _resident_bytes() -> int:
    """Of this process, page by page where the kernel (4.14 or later) adds them up, and else as it last counted them."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))
    except (OSError, StopIteration):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
