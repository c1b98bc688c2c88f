"""Requests that never repeat: texts, sequences, pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from skillserve.errors import CatalogueError
from skillserve.skillfile import read_queries, read_skills, split_file
from skillserve_bench.supply import Texts, embedder_supply, read_texts, reranker_supply
from skillserve_client import ServedModel


def served(role: str) -> ServedModel:
    """A model as a server would describe it."""
    return ServedModel.from_config(
        "embedder" if role == "embedder" else "reranker",
        version="1",
        parameters={"skillserve_digest": "d" * 64, "skillserve_layout": "packed"},
        output_dims=[-1, 3] if role == "embedder" else [-1],
        max_batch_size=8,
    )


def test_real_requests_come_first_and_none_comes_twice(sample_data: Path) -> None:
    real = {query.text.strip() for query in read_queries(split_file(sample_data, "queries", "test"))}
    texts = read_texts(sample_data, seed=1)
    first, more = texts.take(len(real)), texts.take(500)
    assert set(first) == real
    assert len({*first, *more}) == len(real) + 500
    assert (texts.num_real, texts.num_composed) == (len(real), 500)
    again = read_texts(sample_data, seed=1)
    assert again.take(len(real)) + again.take(500) == first + more
    assert read_texts(sample_data, seed=2).take(5) != first[:5]


def test_composed_requests_are_about_as_long_as_real_ones(sample_data: Path) -> None:
    texts = read_texts(sample_data, seed=1)
    real = texts.take(216)
    composed = texts.take(2_000)
    means = [sum(len(text.split()) for text in each) / len(each) for each in (real, composed)]
    assert means[1] == pytest.approx(means[0], rel=0.15)


def test_requests_that_cannot_be_told_apart_run_out_with_an_error() -> None:
    texts = Texts(["go", "go", "  "], seed=1, source="queries.jsonl")
    assert texts.take(2) == ["go", "go go"]
    with pytest.raises(CatalogueError, match="no request is sent twice"):
        texts.take(5)
    with pytest.raises(CatalogueError, match="no requests"):
        Texts([], seed=1, source="queries.jsonl")


def test_sequences_differ_even_where_the_limit_of_the_model_cuts_texts_alike(
    tiny_embedder: Path, sample_data: Path
) -> None:
    supply = embedder_supply(served("embedder"), tiny_embedder, read_texts(sample_data, seed=1))
    found = supply.sequences(600)
    assert len({sequence.tobytes() for sequence in found}) == len(found) == len(supply.lens) == 600
    assert len(set(supply.lens)) > 1  # mixed, though the tiny model cuts most to its limit
    assert len(supply.take(4, each=3)) == 4


def test_pairs_are_new_requests_with_random_skills(tiny_reranker: Path, sample_data: Path) -> None:
    skills = read_skills(split_file(sample_data, "skills", "test"))
    supplies = [
        reranker_supply(served("reranker"), tiny_reranker, read_texts(sample_data, seed=1), skills, seed=1)
        for _ in range(2)
    ]
    first, again = (supply.take(3, each=20) for supply in supplies)
    assert first == again
    assert len(set(supplies[0].lens)) >= 1
    assert len(supplies[0].lens) == 60
