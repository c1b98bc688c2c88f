"""Exact order out of approximate sums: an index nominates, similarities are summed anew in float64.

Indexes choose their arithmetic by batch size, processor and shard, so near ties could swap places from one call to
the next. They therefore only nominate; the order follows sums made here, and equal ones are ordered by row.

Shape legend: Q queries, n nominees, N skills, K results, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from skillserve_client.vectors import Rows
from skillserve_client.wire import Floats

__all__ = ["Nominate", "Nominees", "all_products", "exact_order", "require_queries"]

_ROUNDING = 1e-5
"""Bound on how far an index's float32 sums may stray from exact ones: unit vectors, D up to 4096, 1e-6 in practice."""
_SLACK = 1.01
"""Room for the rounding of the bound on rounding itself."""
_FIRST_SURPLUS = 8
"""Nominees beyond k in the first round; more are asked for only where a tie may reach over the edge."""


class Nominees(NamedTuple):
    """The nearest skills of Q queries by an index's own sums, best first."""

    rough: Floats
    """`[Q, n]`, its similarities."""
    rows: Rows
    """`[Q, n]`."""
    vectors: Callable[[int], Floats]
    """`[n, D]`, of the nominees of one query."""


Nominate = Callable[[Floats, int], Nominees]
"""The nominees of queries `[Q, D]`, as many as are asked for or as there are."""


def require_queries(queries: Floats, dim: int, k: int = 1) -> Floats:
    """Queries as indexes take them; raises ValueError for others than `[Q, D]`, and for k below 1."""
    if queries.ndim != 2 or queries.shape[1] != dim or k < 1:
        raise ValueError(f"queries [Q, {dim}] and k ≥ 1 are needed, not {queries.shape} and {k}")
    return np.ascontiguousarray(queries, np.float32)


def exact_order(queries: Floats, k: int, nominate: Nominate, *, available: int, most: int) -> tuple[Floats, Rows]:
    """The k nearest of the `available` skills: similarities and rows, `[Q, K]`, K = min(k, available), best first.

    No more than `most` are nominated. Where that many ties reach over the k-th place, which of them are in is the
    index's choice; everywhere else the order is exact.
    """
    k, most = min(k, available), min(most, available)
    similarities = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    waiting = np.arange(len(queries) if k else 0)
    num_nominated = min(k + _FIRST_SURPLUS, most)
    while len(waiting):
        found = nominate(queries[waiting], num_nominated)
        # Whoever was not nominated is at most as similar as the last nominee; only a clear gap to the
        # k-th place rules out that a tie of it stayed outside.
        tolerance = _ROUNDING * np.maximum(1.0, np.abs(found.rough[:, k - 1]))
        settled = (found.rough[:, k - 1] - found.rough[:, -1] > tolerance) | (num_nominated == most)
        for place in np.flatnonzero(settled).tolist():
            i = waiting[place]
            exact = _products(found.vectors(place), queries[i])
            order = np.lexsort((found.rows[place], -exact))[:k]
            similarities[i], rows[i] = exact[order], found.rows[place][order]
        waiting = waiting[~settled]
        num_nominated = min(num_nominated * 2, most)
    return similarities, rows


def all_products(vectors: Floats, queries: Floats) -> Floats:
    """The similarities that `exact_order` orders by, of every vector `[n, D]` with every query: `[Q, n]`.

    To the last bit, at the speed of a matrix product. That adds up in an order of its own, which float32 mostly does
    not show. Two orders differ by at most 2 · D · 2⁻⁵³ · |row| · |query| (Higham 2002, section 3.1, for either); where
    so much could change the rounding, the sum is made as there.
    """
    rows, asked = vectors.astype(np.float64), queries.astype(np.float64)
    rough = asked @ rows.T
    norms = [np.sqrt(np.einsum("nd,nd->n", some, some)) for some in (asked, rows)]
    apart = _SLACK * rows.shape[1] * np.finfo(np.float64).eps * np.outer(*norms)
    exact: Floats = (rough - apart).astype(np.float32)
    i, j = np.nonzero(exact != (rough + apart).astype(np.float32))
    exact[i, j] = _products(vectors[j], queries[i])
    return exact


def _products(vectors: Floats, queries: Floats) -> Floats:
    """Inner products `[n]` of rows with one query `[D]`, or with a query for each `[n, D]`, summed in float64.

    The same for a row whichever rows are beside it.
    """
    exact: Floats = (vectors * queries.astype(np.float64)).sum(axis=1).astype(np.float32)
    return exact
