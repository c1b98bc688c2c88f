"""FAISS's structures as they are measured: each finds what numpy finds, and so does what was written and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skillserve_client.index import STRUCTURES, Structure

_LEAST_SHARE = {"flat": 1.0, "fp16": 0.95, "sq8": 0.9, "ivf-flat": 0.9, "ivf-sq8": 0.8, "ivf-pq": 0.3, "hnsw": 0.9}
"""Of the ten nearest: what the numbers of each kind leave room for; broken ones find one in a hundred."""


@pytest.mark.parametrize("kind", STRUCTURES)
def test_a_structure_finds_what_is_nearest_and_so_does_its_copy(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((1_000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[:20] + 0.05 * rng.standard_normal((20, 32)).astype(np.float32)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    structure = Structure.empty(kind, 32, rows=1_000, num_probes=64, search_breadth=64)
    if not structure.trained:
        structure.train(vectors)
    structure.add(vectors)
    similarities, places = structure.search(queries, 10)
    shared = [len(set(found) & set(wanted)) / 10 for found, wanted in zip(places, exact, strict=True)]
    assert np.mean(shared) >= _LEAST_SHARE[kind]
    assert (np.diff(similarities, axis=1) <= 0).all()
    structure.write(tmp_path / "index")
    again, places_again = Structure.read(tmp_path / "index").search(queries, 10)
    np.testing.assert_array_equal(places_again, places)
    np.testing.assert_allclose(again, similarities, rtol=1e-6)


def test_only_kinds_with_something_to_learn_are_untrained() -> None:
    untrained = {
        kind
        for kind in STRUCTURES
        if not Structure.empty(kind, 16, rows=1_000, num_probes=1, search_breadth=16).trained
    }
    assert untrained == {"sq8", "ivf-flat", "ivf-sq8", "ivf-pq"}
