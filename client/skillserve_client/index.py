"""The one door to FAISS: a `VectorIndex` in this process, and FAISS's structures as such, to be measured.

Shape legend: Q queries, N skills, K results, D embedding dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np

from skillserve.errors import BundleError
from skillserve_client.exact import Nominees, all_products, exact_order, require_queries
from skillserve_client.vectors import Entries, Mark, Rows
from skillserve_client.wire import Floats

__all__ = ["STRUCTURES", "FlatIndex", "Structure"]

_ROWS_AT_ONCE = 256
"""Vectors whose products are in memory together, and in the processor's cache."""


STRUCTURES: Mapping[str, str] = {
    "flat": "Flat",
    "fp16": "SQfp16",
    "sq8": "SQ8",
    "ivf-flat": "IVF{lists},Flat",
    "ivf-sq8": "IVF{lists},SQ8",
    "ivf-pq": "IVF{lists},PQ{parts}np",
    "hnsw": "HNSW32,Flat",
}
"""Kind → how FAISS's factory spells it; `ivf-pq` keeps a byte for eight numbers, and goes
without the training for polysemous codes (`np`), which takes a second for each byte. Bundles are `flat`."""
_LISTS_A_ROOT = 4
"""Lists of an IVF index for each square root of its rows, after FAISS's guidelines (4 to 16)."""
_FAISS_LIMIT = 1 << 40
"""Bytes of one vector in a file, as FAISS has it at first."""
_SAMPLES_A_CENTROID = 64
"""Vectors that k-means sees for each centroid; FAISS takes 256 where nobody says so, and warns below 39."""
_ITERATIONS = 10
"""Of k-means, as FAISS does for lists; for the bytes of PQ it does 25."""


class FlatIndex:
    """Embeddings of a catalogue, searched exhaustively; places in FAISS follow the rows."""

    def __init__(self, dim: int) -> None:
        self._index = faiss.IndexFlatIP(dim)
        self._label({})

    @classmethod
    def of(cls, entries: Entries) -> FlatIndex:
        """An index of these entries."""
        index = cls(entries.vectors.shape[1])
        index.upsert(entries)
        return index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._index.d)

    def search(self, queries: Floats, k: int, *, namespace: str | None = None) -> tuple[Floats, Rows]:
        """See `VectorIndex`."""
        queries = require_queries(queries, self.dim, k)
        chosen, available = None, len(self)
        if namespace is not None:
            places = np.flatnonzero(self._namespaces == namespace)
            chosen, available = faiss.SearchParameters(sel=faiss.IDSelectorBatch(places)), len(places)  # type: ignore[call-arg]

        def nominate(asked: Floats, num_nominated: int) -> Nominees:
            rough, nominated = self._index.search(asked, num_nominated, params=chosen)
            return Nominees(rough, self._rows[nominated], lambda place: self._index.reconstruct_batch(nominated[place]))

        return exact_order(queries, k, nominate, available=available, most=available)

    def similarities(self, queries: Floats) -> Floats:
        """See `VectorIndex`."""
        queries = require_queries(queries, self.dim)
        exact = np.empty((len(queries), len(self)), np.float32)
        for start in range(0, len(self), _ROWS_AT_ONCE):
            columns = exact[:, start : start + _ROWS_AT_ONCE]
            columns[:] = all_products(self._index.reconstruct_n(start, columns.shape[1]), queries)
        return exact

    def marks(self) -> dict[str, Mark]:
        """See `VectorIndex`."""
        return dict(self._marks)

    def vectors(self, ids: Sequence[str]) -> Floats:
        """See `VectorIndex`."""
        places = np.array([self._places[skill] for skill in ids], np.int64)
        found: Floats = self._index.reconstruct_batch(places) if len(places) else np.empty((0, self.dim), np.float32)
        return found

    def upsert(self, entries: Entries) -> None:
        """See `VectorIndex`."""
        if entries.vectors.shape[1] != self.dim:
            raise ValueError(f"vectors [n, {self.dim}] are needed, not {entries.vectors.shape}")
        kept = [skill for skill in self._marks if skill not in entries.marks]
        marks = {**{skill: self._marks[skill] for skill in kept}, **entries.marks}
        self._replace(marks, np.concatenate([self.vectors(kept), entries.vectors]) if kept else entries.vectors)

    def delete(self, ids: Iterable[str]) -> None:
        """See `VectorIndex`."""
        gone = set(ids)
        kept = [skill for skill in self._marks if skill not in gone]
        self._replace({skill: self._marks[skill] for skill in kept}, self.vectors(kept))

    def to_bytes(self) -> bytes:
        """The vectors in FAISS's own format, in the order of the rows."""
        return bytes(faiss.serialize_index(self._index).tobytes())

    @classmethod
    def from_bytes(cls, content: bytes, marks: Mapping[str, Mark], *, subject: str) -> FlatIndex:
        """Read an index whose checksum was verified, with the marks of its skills in the order of their rows.

        FAISS loads many damaged files without complaint and answers wrongly from them. Raises BundleError.
        """
        faiss.set_deserialization_vector_byte_limit(len(content))
        try:
            found = faiss.deserialize_index(np.frombuffer(content, np.uint8))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise _unreadable(subject, str(error).splitlines()[0]) from error
        if not isinstance(found, faiss.IndexFlatIP):
            raise _unreadable(subject, f"a {type(found).__name__}")
        if found.ntotal != len(marks):
            raise _unreadable(subject, f"{found.ntotal} vectors for {len(marks)} skills")
        index = cls(found.d)
        index._index = found
        index._label(marks)
        return index

    def _replace(self, marks: Mapping[str, Mark], vectors: Floats) -> None:
        ids = list(marks)
        order = sorted(range(len(ids)), key=lambda place: marks[ids[place]].row)
        sorted_marks = {ids[place]: marks[ids[place]] for place in order}
        if order != list(range(len(ids))):  # a large catalogue comes in order, and is not copied
            vectors = vectors[order]
        Entries(sorted_marks, vectors)  # no two of one row, now that old and new are together
        self._index = faiss.IndexFlatIP(self.dim)
        self._index.add(np.ascontiguousarray(vectors, np.float32))
        self._label(sorted_marks)

    def _label(self, marks: Mapping[str, Mark]) -> None:
        self._marks = dict(marks)
        self._places = {skill: place for place, skill in enumerate(marks)}
        self._rows = np.array([mark.row for mark in marks.values()], np.int64)
        self._namespaces = np.array([mark.namespace for mark in marks.values()], object)


class Structure:
    """Vectors in one of FAISS's structures, without ids and marks: what one costs, and how exactly it finds."""

    def __init__(self, index: Any) -> None:  # noqa: ANN401 -- FAISS ships no type information
        self._index = index

    @classmethod
    def empty(cls, kind: str, dim: int, *, rows: int, num_probes: int, search_breadth: int) -> Self:
        """One of a kind for so many rows, with what a search looks into: so many lists, or so many candidates."""
        lists = max(1, round(_LISTS_A_ROOT * math.sqrt(rows)))
        spelt = STRUCTURES[kind].format(lists=lists, parts=dim // 8)
        index = faiss.index_factory(dim, spelt, faiss.METRIC_INNER_PRODUCT)
        if isinstance(index, faiss.IndexIVF):
            index.nprobe = min(num_probes, lists)
            _sample(index.cp)
            if isinstance(index, faiss.IndexIVFPQ):
                _sample(index.pq.cp)
        elif isinstance(index, faiss.IndexHNSW):
            index.hnsw.efSearch = search_breadth
        return cls(index)

    @classmethod
    def read(cls, path: Path) -> Self:
        """One that `write` wrote in this very measurement: nothing is verified."""
        faiss.set_deserialization_vector_byte_limit(_FAISS_LIMIT)  # it may be that of a bundle opened before
        return cls(faiss.read_index(str(path)))

    @property
    def trained(self) -> bool:
        """Whether there is nothing to learn, or it was learnt."""
        return bool(self._index.is_trained)

    def train(self, vectors: Floats) -> None:
        """Learn centroids and ranges from vectors `[N, D]`, where the kind has any."""
        self._index.train(vectors)

    def add(self, vectors: Floats) -> None:
        """Take vectors `[N, D]` in, under their places."""
        self._index.add(vectors)

    def search(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """Similarities and places of what it finds nearest, `[Q, K]` each, by the structure's own sums."""
        found: tuple[Floats, Rows] = self._index.search(queries, k)
        return found

    def write(self, path: Path) -> None:
        """Write it in FAISS's own format."""
        faiss.write_index(self._index, str(path))


def _sample(clustering: Any) -> None:  # noqa: ANN401 -- see above
    clustering.max_points_per_centroid = _SAMPLES_A_CENTROID
    clustering.min_points_per_centroid = 1  # small indexes are measured on purpose
    clustering.niter = _ITERATIONS


def _unreadable(subject: str, got: str) -> BundleError:
    return BundleError(
        subject,
        got=got,
        wanted="a flat inner-product index of the bundle's skills",
        fix="Build the bundle again: skillserve index CATALOGUE --force",
    )
