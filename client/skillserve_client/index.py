"""The one door to FAISS: exact inner-product search over embeddings.

Shape legend: Q queries, N skills, K results, D embedding dimension.
"""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from skillserve.errors import BundleError
from skillserve_client.wire import Floats

__all__ = ["FlatIndex", "Rows"]

Rows = npt.NDArray[np.int64]

_ROUNDING = 1e-5
"""Bound on how far FAISS's float32 sums may stray from exact ones: unit vectors, D up to 4096, 1e-6 in practice."""
_SLACK = 1.01
"""Room for the rounding of the bound on rounding itself."""
_ROWS_AT_ONCE = 256
"""Vectors whose products are in memory together, and in the processor's cache."""


class FlatIndex:
    """Embeddings of a catalogue, searched exhaustively.

    FAISS chooses its arithmetic by batch size and processor, so near ties could swap places from one call to
    the next. It therefore only nominates; the order follows similarities that are summed here in float64, and
    equal ones are ordered by row.
    """

    def __init__(self, index: faiss.IndexFlatIP) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: Floats) -> FlatIndex:
        """Index `[N, D]` finite vectors; row numbers are their positions."""
        if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
            raise ValueError(f"an index needs finite vectors [N, D] with N ≥ 1, not {vectors.shape}")
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, np.float32))
        return cls(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._index.d)

    @property
    def vectors(self) -> Floats:
        """Embeddings `[N, D]` by row, a copy."""
        vectors: Floats = self._index.reconstruct_n(0, len(self))
        return vectors

    def search(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """The K = min(k, N) nearest rows of each query: similarities `[Q, K]`, rows `[Q, K]`, best first."""
        if queries.ndim != 2 or queries.shape[1] != self.dim or k < 1:
            raise ValueError(f"queries [Q, {self.dim}] and k ≥ 1 are needed, not {queries.shape} and {k}")
        queries = np.ascontiguousarray(queries, np.float32)
        k = min(k, len(self))
        similarities = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        waiting = np.arange(len(queries))
        num_nominated = min(k + 8, len(self))
        while len(waiting):
            rough, nominated = self._index.search(queries[waiting], num_nominated)
            # Whoever was not nominated is at most as similar as the last nominee; only a clear gap to the
            # k-th place rules out that a tie of it stayed outside.
            tolerance = _ROUNDING * np.maximum(1.0, np.abs(rough[:, k - 1]))
            settled = (rough[:, k - 1] - rough[:, -1] > tolerance) | (num_nominated == len(self))
            for place in np.flatnonzero(settled):
                i = waiting[place]
                similarities[i], rows[i] = self._ordered(queries[i], nominated[place], k)
            waiting = waiting[~settled]
            num_nominated = min(num_nominated * 2, len(self))
        return similarities, rows

    def similarities(self, queries: Floats) -> Floats:
        """Of queries `[Q, D]` with all rows, `[Q, N]`: the very ones that `search` orders by."""
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries [Q, {self.dim}] are needed, not {queries.shape}")
        exact = np.empty((len(queries), len(self)), np.float32)
        for start in range(0, len(self), _ROWS_AT_ONCE):
            columns = exact[:, start : start + _ROWS_AT_ONCE]
            columns[:] = _all_products(self._index.reconstruct_n(start, columns.shape[1]), queries)
        return exact

    def to_bytes(self) -> bytes:
        """The index in FAISS's own format."""
        return bytes(faiss.serialize_index(self._index).tobytes())

    @classmethod
    def from_bytes(cls, content: bytes, *, subject: str) -> FlatIndex:
        """Read an index whose checksum was verified; raises BundleError.

        FAISS loads many damaged files without complaint and answers wrongly from them.
        """
        faiss.set_deserialization_vector_byte_limit(len(content))
        try:
            index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise _unreadable(subject, str(error).splitlines()[0]) from error
        if not isinstance(index, faiss.IndexFlatIP):
            raise _unreadable(subject, f"a {type(index).__name__}")
        return cls(index)

    def _ordered(self, query: Floats, nominated: Rows, k: int) -> tuple[Floats, Rows]:
        exact = _products(self._index.reconstruct_batch(nominated), query)
        order = np.lexsort((nominated, -exact))[:k]
        return exact[order], nominated[order]


def _products(vectors: Floats, queries: Floats) -> Floats:
    """Inner products `[n]` of rows with one query `[D]`, or with a query for each `[n, D]`, summed in float64.

    The same for a row whichever rows are beside it.
    """
    exact: Floats = (vectors * queries.astype(np.float64)).sum(axis=1).astype(np.float32)
    return exact


def _all_products(vectors: Floats, queries: Floats) -> Floats:
    """`_products` of every row with every query, `[Q, n]`, to the last bit, at the speed of a matrix product.

    That adds up in an order of its own, which float32 mostly does not show. Two orders differ by at most 2 · D · 2⁻⁵³ ·
    |row| · |query| (Higham 2002, section 3.1, for either); where so much could change the rounding, it is `_products`.
    """
    rows, asked = vectors.astype(np.float64), queries.astype(np.float64)
    rough = asked @ rows.T
    norms = [np.sqrt(np.einsum("nd,nd->n", some, some)) for some in (asked, rows)]
    apart = _SLACK * rows.shape[1] * np.finfo(np.float64).eps * np.outer(*norms)
    exact: Floats = (rough - apart).astype(np.float32)
    i, j = np.nonzero(exact != (rough + apart).astype(np.float32))
    exact[i, j] = _products(vectors[j], queries[i])
    return exact


def _unreadable(subject: str, got: str) -> BundleError:
    return BundleError(
        subject,
        got=got,
        wanted="a flat inner-product index",
        fix="Build the bundle again: skillserve index CATALOGUE --force",
    )
