"""The flat index against brute force in numpy."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillserve.errors import BundleError
from skillserve_client.index import FlatIndex
from skillserve_client.vectors import Entries, Mark
from skillserve_client.wire import Floats


def marks(n: int) -> dict[str, Mark]:
    """Marks of n skills."""
    return {f"s{row}": Mark(row, "", "") for row in range(n)}


def flat(vectors: Floats) -> FlatIndex:
    """An index of vectors, in their order."""
    return FlatIndex.of(Entries(marks(len(vectors)), vectors))


def brute_force(vectors: Floats, queries: Floats, k: int) -> list[list[int]]:
    """All similarities in float64, rounded to float32, then by row."""
    similarities = np.stack([(vectors.astype(np.float64) * q.astype(np.float64)).sum(axis=1) for q in queries])
    return [np.lexsort((np.arange(len(vectors)), -row.astype(np.float32)))[:k].tolist() for row in similarities]


def unit(seed: int, shape: tuple[int, int]) -> Floats:
    """Random unit rows."""
    vectors = np.random.default_rng(seed).normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 80), st.integers(0, 9999), st.integers(1, 6))
def test_search_equals_brute_force_with_ties_and_survives_a_round_trip(
    n: int, q: int, k: int, seed: int, m: int
) -> None:
    """Few distinct vectors (m) make many exact ties, which must come in row order."""
    vectors = unit(seed, (m, 8))[np.random.default_rng(seed).integers(0, m, n)]
    queries = unit(seed + 1, (q, 8))
    index = flat(vectors)
    similarities, rows = index.search(queries, k)
    assert rows.tolist() == brute_force(vectors, queries, k)
    assert rows.shape == (q, min(n, k))
    np.testing.assert_allclose(similarities, np.take_along_axis(queries @ vectors.T, rows, axis=1), atol=1e-5)
    again = FlatIndex.from_bytes(index.to_bytes(), index.marks(), subject="index")
    assert again.to_bytes() == index.to_bytes()
    assert (len(again), again.dim) == (n, 8)
    np.testing.assert_array_equal(again.search(queries, k)[1], rows)


def test_a_query_of_a_batch_is_answered_as_alone() -> None:
    """FAISS switches to matrix multiplication at 20 queries; its rounding must not show."""
    vectors, queries = unit(1, (2000, 96)), unit(2, (64, 96))
    vectors[1000:] = vectors[:1000]
    index = flat(vectors)
    similarities, rows = index.search(queries, 50)
    for i in range(len(queries)):
        alone = index.search(queries[i : i + 1], 50)
        np.testing.assert_array_equal(alone[0][0], similarities[i])
        np.testing.assert_array_equal(alone[1][0], rows[i])
    assert rows.tolist() == brute_force(vectors, queries, 50)


def test_similarities_of_all_rows_are_those_that_search_orders_by() -> None:
    vectors, queries = unit(1, (700, 96)), unit(2, (3, 96))
    vectors[500:] = vectors[:200]
    index = flat(vectors)
    found, rows = index.search(queries, len(vectors))
    similarities = index.similarities(queries)
    assert np.take_along_axis(similarities, rows, axis=1).tobytes() == found.tobytes()
    np.testing.assert_allclose(similarities, queries @ vectors.T, atol=1e-5)
    with pytest.raises(ValueError, match="queries"):
        index.similarities(queries[0])


@pytest.mark.parametrize("vectors", [np.ones(4, np.float32), np.full((2, 4), np.nan)])
def test_vectors_that_make_no_index_are_refused(vectors: Floats) -> None:
    with pytest.raises(ValueError, match="finite vectors"):
        flat(vectors)


def test_queries_of_another_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match="queries"):
        flat(unit(1, (3, 8))).search(unit(1, (3, 7)), 2)


def test_another_kind_of_index_or_no_index_at_all_is_refused() -> None:
    other = faiss.IndexFlatL2(4)
    with pytest.raises(BundleError, match="IndexFlatL2"):
        FlatIndex.from_bytes(faiss.serialize_index(other).tobytes(), {}, subject="index.faiss")
    with pytest.raises(BundleError, match=r"index\.faiss"):
        FlatIndex.from_bytes(b"nonsense", {}, subject="index.faiss")
