"""The contract of vector indexes, kept by FAISS in this process and by Milvus (Lite) alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from skillserve.errors import ConfigError
from skillserve.settings import IndexSettings
from skillserve_client.index import FlatIndex
from skillserve_client.milvus import MilvusStore
from skillserve_client.vectors import Entries, Identity, Mark, VectorIndex, differences
from skillserve_client.wire import Floats

DIM = 24
NAMESPACES = ["acme", "", 'a" or row >= 0 or "', "back\\slash", "line\nend", "namespace == {x}", "日本 🙂"]

Make = Callable[[], VectorIndex]


def unit(seed: int, n: int) -> Floats:
    """Random unit rows."""
    vectors = np.random.default_rng(seed).normal(size=(n, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def entries(vectors: Floats, first_row: int = 0) -> Entries:
    """Skills `s0`, `s1`, … in namespaces by turns."""
    rows = range(first_row, first_row + len(vectors))
    return Entries({f"s{row}": Mark(row, NAMESPACES[row % len(NAMESPACES)], f"d{row}") for row in rows}, vectors)


def brute_force(vectors: Floats, query: Floats, rows: np.ndarray, k: int) -> list[int]:
    """All similarities in float64, rounded to float32, then by row."""
    similarities = (vectors[rows].astype(np.float64) * query.astype(np.float64)).sum(axis=1).astype(np.float32)
    return rows[np.lexsort((rows, -similarities))][:k].tolist()


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    """A Milvus Lite for all tests of this file."""
    store = MilvusStore.connect(IndexSettings(uri=str(tmp_path_factory.mktemp("milvus") / "lite.db")), {})
    yield store
    store.close()


@pytest.fixture(params=["faiss", "milvus"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes empty indexes of one kind."""
    if request.param == "faiss":
        yield lambda: FlatIndex(DIM)
        return
    store: MilvusStore = request.getfixturevalue("lite")
    identity, names = Identity(embedder="e" * 64, tokenizer="f" * 64, dim=DIM), []

    def made() -> VectorIndex:
        names.append(f"contract_{len(names)}")
        store.create(names[-1], identity)
        store.load(names[-1], identity)
        return store.index(names[-1], identity)

    yield made
    for name in names:
        store.drop(name)


def test_search_equals_brute_force_with_ties_and_a_batch_equals_its_queries_alone(make: Make) -> None:
    """Few distinct vectors make many exact ties, which must come in row order, also across the edge at k."""
    vectors = unit(1, 7)[np.random.default_rng(1).integers(0, 7, 90)]
    queries = np.concatenate([unit(2, 24), vectors[:2]])
    index = make()
    index.upsert(entries(vectors))
    for k in (1, 5, 89, 500):
        similarities, rows = index.search(queries, k)
        assert rows.tolist() == [brute_force(vectors, query, np.arange(90), k) for query in queries]
        assert similarities.dtype == np.float32
        assert rows.shape == similarities.shape == (len(queries), min(k, 90))
        for i in (0, 25):
            alone = index.search(queries[i : i + 1], k)
            assert (alone[0][0].tobytes(), alone[1][0].tobytes()) == (similarities[i].tobytes(), rows[i].tobytes())


def test_similarities_of_all_rows_are_those_that_search_orders_by(make: Make) -> None:
    vectors, queries = unit(3, 120), unit(4, 3)
    index = make()
    index.upsert(entries(vectors))
    found, rows = index.search(queries, 120)
    similarities = index.similarities(queries)
    assert np.take_along_axis(similarities, rows, axis=1).tobytes() == found.tobytes()
    np.testing.assert_allclose(similarities, queries @ vectors.T, atol=1e-5)


def test_a_namespace_is_searched_as_if_nothing_else_were_there(make: Make) -> None:
    """Names that are no words are data, never a filter's syntax."""
    vectors, queries = unit(5, 40), unit(6, 2)
    index = make()
    index.upsert(entries(vectors))
    for place, namespace in enumerate(NAMESPACES):
        rows = np.arange(place, 40, len(NAMESPACES))
        found = index.search(queries, 4, namespace=namespace)[1]
        assert found.tolist() == [brute_force(vectors, query, rows, 4) for query in queries]
        assert index.search(queries, 500, namespace=namespace)[0].shape == (2, len(rows))
    similarities, none = index.search(queries, 4, namespace="nobody's")
    assert similarities.shape == none.shape == (2, 0)


def test_upsert_replaces_by_id_and_delete_removes_by_id(make: Make) -> None:
    vectors, changed = unit(7, 12), unit(8, 3)
    index = make()
    index.upsert(entries(vectors))
    index.upsert(
        Entries({"s4": Mark(4, "moved", "new"), "s5": Mark(5, "moved", "new"), "n": Mark(12, "", "n")}, changed)
    )
    index.delete(["s0", "s11", "never there"])
    assert (len(index), index.dim) == (11, DIM)
    held = index.marks()
    assert set(held) == {*(f"s{row}" for row in range(1, 11)), "n"}
    assert (held["s4"], held["s3"]) == (Mark(4, "moved", "new"), Mark(3, NAMESPACES[3], "d3"))
    now = vectors.copy()
    now[[4, 5]] = changed[:2]
    now = np.concatenate([now, changed[2:]])
    rows = np.arange(1, 13)[np.arange(1, 13) != 11]
    query = unit(9, 1)
    assert index.search(query, 20)[1].tolist() == [brute_force(now, query[0], rows, 20)]
    assert index.search(query, 20, namespace="moved")[1].shape == (1, 2)
    np.testing.assert_allclose(index.similarities(query), query @ now[rows].T, atol=1e-5)
    assert index.vectors(["n", "s4", "s1"]).tobytes() == now[[12, 4, 1]].tobytes()
    assert index.vectors([]).shape == (0, DIM)
    with pytest.raises(KeyError):
        index.vectors(["s0"])


def test_ids_are_data_whatever_they_contain(make: Make) -> None:
    ids = ['quo"te', "back\\slash", "it's", "line\nend", "日本 🙂", 'x"] or row >= 0 or id in ["', " "]
    vectors = unit(10, len(ids))
    index = make()
    index.upsert(Entries({skill: Mark(row, "", "") for row, skill in enumerate(ids)}, vectors))
    assert list(index.marks()) == ids
    for left, skill in zip(itertools.count(len(ids) - 1, -1), ids, strict=False):
        assert index.vectors([skill]).shape == (1, DIM)
        index.delete([skill])
        assert len(index) == left


def test_an_index_is_brought_from_one_catalogue_to_another_by_what_differs(make: Make) -> None:
    before, after = entries(unit(11, 9)), entries(unit(12, 8), first_row=2)
    kept = Entries({"s2": before.marks["s2"], **after.marks}, np.concatenate([before.vectors[2:3], after.vectors[1:]]))
    index = make()
    index.upsert(before)
    gone, missing = differences(index.marks(), kept.marks)
    assert (sorted(gone), missing) == (["s0", "s1"], ["s9"])
    index.delete(gone)
    index.upsert(Entries({"s9": kept.marks["s9"]}, kept.vectors[-1:]))
    assert index.marks() == kept.marks


def test_an_empty_index_answers_with_nothing(make: Make) -> None:
    index = make()
    assert (len(index), index.marks()) == (0, {})
    assert index.search(unit(1, 2), 3)[1].shape == index.similarities(unit(1, 2)).shape == (2, 0)


def test_vectors_and_queries_of_another_dimension_are_refused(make: Make) -> None:
    index = make()
    index.upsert(entries(unit(1, 3)))
    for refused in (
        lambda: index.search(unit(1, 2)[:, :5], 2),
        lambda: index.search(unit(1, 2), 0),
        lambda: index.similarities(unit(1, 1)[0]),
        lambda: index.upsert(Entries({"x": Mark(9, "", "")}, np.ones((1, 5), np.float32))),
    ):
        with pytest.raises(ValueError, match=r"\[.*, 24\]"):
            refused()
    assert len(index) == 3


@pytest.mark.parametrize("vectors", [np.ones(4, np.float32), np.ones((3, 4), np.float32), np.full((2, 4), np.nan)])
def test_entries_that_no_index_can_hold_are_refused(vectors: Any) -> None:
    with pytest.raises(ValueError, match="finite vectors"):
        Entries({"a": Mark(0, "", ""), "b": Mark(1, "", "")}, vectors)
    with pytest.raises(ValueError, match="one row"):
        Entries({"a": Mark(0, "", ""), "b": Mark(0, "", "")}, np.ones((2, 4), np.float32))


def test_pages_of_a_few_rows_change_nothing(lite: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large catalogues are read and written in parts; here the parts are small."""
    identity = Identity(embedder="e" * 64, tokenizer="f" * 64, dim=DIM)
    vectors, queries = unit(13, 50), unit(14, 6)
    flat = FlatIndex.of(entries(vectors))
    flat.delete(["s3", "s20", "s21", "s22", "s23", "s24", "s25", "s26", "s27"])
    monkeypatch.setattr("skillserve_client.milvus_index._MOST_BYTES", 4 * DIM * 3)
    monkeypatch.setattr("skillserve_client.milvus_index._IDS_AT_ONCE", 2)
    lite.create("paged", identity)
    lite.load("paged", identity)
    index = lite.index("paged", identity)
    index.upsert(entries(vectors))
    index.delete(["s3", *(f"s{row}" for row in range(20, 28))])
    assert index.marks() == flat.marks()
    assert index.similarities(queries).tobytes() == flat.similarities(queries).tobytes()
    for found, wanted in zip(index.search(queries, 9), flat.search(queries, 9), strict=True):
        assert found.tobytes() == wanted.tobytes()
    assert index.vectors(["s40", "s1", "s2"]).tobytes() == flat.vectors(["s40", "s1", "s2"]).tobytes()
    monkeypatch.setattr("skillserve_client.milvus_index._MOST_FOUND", 8)
    with pytest.raises(ConfigError, match="--candidates"):
        index.search(queries, 9)
    lite.drop("paged")
