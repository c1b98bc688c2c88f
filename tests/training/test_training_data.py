"""What training reads, what it refuses, and what it must never see."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillserve.errors import CatalogueError
from skillserve.records import Query, Skill
from skillserve_training import read_training_data
from skillserve_training.dataset import TrainingData, hold_out


def _data(golds: list[set[int]]) -> TrainingData:
    return TrainingData(
        skills=tuple(Skill(id=f"s{i}", name=f"s{i}") for i in range(12)),
        queries=tuple(Query(id=f"q{i}", text="a") for i in range(len(golds))),
        golds={f"q{i}": frozenset(f"s{gold}" for gold in fitting) for i, fitting in enumerate(golds)},
        digest="0" * 64,
    )


_GOLDS = st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=4), min_size=1, max_size=30)


@given(_GOLDS, st.floats(0.05, 0.9))
def test_the_hold_out_never_shares_a_gold_with_training(golds: list[set[int]], share: float) -> None:
    data = _data(golds)
    try:
        to_train, to_choose = hold_out(data, share=share)
    except CatalogueError:
        return  # everything hangs together, so nothing was left to train on
    trained = {skill.id for skill in to_train.skills}
    for query in to_train.queries:
        assert data.golds[query.id] <= trained
    for query in to_choose.queries:
        assert data.golds[query.id].isdisjoint(trained)
    assert to_choose.skills == data.skills


def test_a_smaller_hold_out_is_a_part_of_a_larger_one(sample_data: Path) -> None:
    """A reranker is chosen on skills that its embedder has not seen, also when the shares differ."""
    data = read_training_data(sample_data)
    small, large = (hold_out(data, share=share)[0] for share in (0.1, 0.3))
    assert {skill.id for skill in large.skills} < {skill.id for skill in small.skills}


def test_requests_that_share_golds_are_held_out_together(sample_data: Path) -> None:
    data = read_training_data(sample_data)
    to_train, to_choose = hold_out(data, share=0.2)
    # Only the last chain, at the edge of the share, may be cut.
    assert len(data.queries) - len(to_train.queries) - len(to_choose.queries) <= 3
    assert 0.15 < len(to_choose.queries) / len(data.queries) < 0.25


def test_without_a_share_everything_is_trained_on(sample_data: Path) -> None:
    data = read_training_data(sample_data)
    to_train, to_choose = hold_out(data, share=0)
    assert to_train == data
    assert not to_choose.queries


def test_a_hold_out_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(CatalogueError, match="--holdout-share 0"):
        hold_out(_data([{0, 1}]), share=0.5)


def test_the_test_split_is_never_opened(tiny_data: Path) -> None:
    for part in ("skills", "queries", "qrels"):
        (tiny_data / part / "test.jsonl").write_bytes(b"\xff not JSON")
    assert len(read_training_data(tiny_data).skills) == 28


def test_gzipped_files_are_the_same_data(tiny_data: Path) -> None:
    plain = read_training_data(tiny_data)
    for part in ("skills", "queries", "qrels"):
        path = tiny_data / part / "train.jsonl"
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=1))
        path.unlink()
    assert read_training_data(tiny_data) == plain


def test_the_digest_covers_every_file(tiny_data: Path) -> None:
    digests = {read_training_data(tiny_data).digest}
    for part in ("skills", "queries", "qrels"):
        with (tiny_data / part / "train.jsonl").open("a") as file:
            file.write("\n")
        digests.add(read_training_data(tiny_data).digest)
    assert len(digests) == 4


def test_all_faults_of_the_data_are_listed_at_once(tiny_data: Path) -> None:
    with (tiny_data / "qrels" / "train.jsonl").open("a") as file:
        for row in ({"query_id": "nobody", "skill_id": "sql-test"}, {"query_id": "q-sql-test", "skill_id": "nothing"}):
            file.write(json.dumps(row | {"relevance": 1}) + "\n")
    with (tiny_data / "queries" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"id": "lonely", "query": "find"}) + "\n")
    with pytest.raises(CatalogueError) as error:
        read_training_data(tiny_data)
    for name in ("nobody", "nothing", "lonely"):
        assert f"`{name}`" in str(error.value)


def test_skills_judged_not_to_fit_are_no_golds(tiny_data: Path) -> None:
    before = read_training_data(tiny_data)
    with (tiny_data / "qrels" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"query_id": "q-sql-test", "skill_id": "agent-log", "relevance": 0}) + "\n")
    assert replace(read_training_data(tiny_data), digest=before.digest) == before
