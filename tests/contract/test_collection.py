"""Test collections: what is measured on is checked first, and its groups add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skillserve import breakdown
from skillserve.breakdown import by_namespace, by_num_golds
from skillserve.collection import read_collection, read_split
from skillserve.errors import CatalogueError


def add_line(path: Path, **row: object) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def test_a_split_is_read_without_the_requests_that_nothing_fits(data: Path) -> None:
    collection = read_split(data, "test")
    assert [query.id for query in collection.queries] == ["q1", "q2", "q3"]
    assert (collection.num_dropped, collection.num_golds, len(collection.skills)) == (1, 4, 3)
    assert collection.golds(collection.queries[2]) == ["a", "c"]
    assert [query.id for query in read_split(data, "train").queries] == ["r1"]


def test_a_union_pool_searches_the_skills_of_both_splits(data: Path) -> None:
    assert {skill.id for skill in read_split(data, "test", pool="union").skills} == {"a", "b", "c", "d"}
    (data / "skills" / "train.jsonl").write_text(json.dumps({"id": "a", "name": "again"}) + "\n")
    with pytest.raises(CatalogueError, match="1 ids are in more than one file"):
        read_split(data, "test", pool="union")


def test_judgements_that_name_unknown_ids_are_listed(data: Path) -> None:
    add_line(data / "qrels" / "test.jsonl", query_id="q1", skill_id="nowhere", relevance=1)
    add_line(data / "qrels" / "test.jsonl", query_id="nobody", skill_id="a", relevance=1)
    with pytest.raises(CatalogueError, match=r"2 fault.*`nowhere`.*`nobody`"):
        read_split(data, "test")


def test_requests_bring_their_own_judgements_where_no_file_does(data: Path, tmp_path: Path) -> None:
    queries = tmp_path / "queries.jsonl"
    add_line(queries, id="x", query="merge", skill_ids=["a"])
    collection = read_collection(queries, None, [data / "skills" / "test.jsonl"])
    assert collection.qrels == {"x": {"a": 1}}
    add_line(queries, id="y", query="merge", skill_ids=["nowhere"])
    with pytest.raises(CatalogueError, match="nowhere"):
        read_collection(queries, None, [data / "skills" / "test.jsonl"])


def test_requests_that_nothing_fits_cannot_be_measured_with(data: Path) -> None:
    (data / "qrels" / "test.jsonl").write_text("")
    with pytest.raises(CatalogueError, match=r"4 requests, none of them.*--qrels"):
        read_split(data, "test")


def test_the_digest_is_of_the_content_and_not_of_its_order(data: Path) -> None:
    before = read_split(data, "test").digest()
    for file in data.glob("*/test.jsonl"):
        file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert read_split(data, "test").digest() == before
    add_line(data / "skills" / "test.jsonl", id="e", name="new")
    assert read_split(data, "test").digest() != before


def test_groups_are_by_golds_and_by_their_namespaces(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose golds are of two namespaces is in both groups, and once in the sum of them."""
    collection = read_split(data, "test")
    assert by_num_golds(collection) == {"1": [0, 1], "2": [2]}
    assert by_namespace(collection) == {"acme": [0, 1, 2], "other": [2]}
    monkeypatch.setattr(breakdown, "MOST_NAMESPACES", 0)
    assert by_namespace(collection) == {"2 others": [0, 1, 2]}
