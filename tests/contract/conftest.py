"""A collection of three skills and four requests, as files and as a folder in SkillRet's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Test split: a, b and c; q1 and q2 have one gold, q3 has two, q4 none. Train split: d, with r1."""
    folder = tmp_path / "data"
    skills = [
        {"id": "a", "name": "merge pdf", "namespace": "acme"},
        {"id": "b", "name": "resize photo", "namespace": "acme"},
        {"id": "c", "name": "commit code", "namespace": "other"},
    ]
    write_lines(folder / "skills" / "test.jsonl", skills)
    write_lines(folder / "skills" / "train.jsonl", [{"id": "d", "name": "plot chart"}])
    texts = {"q1": "merge a pdf", "q2": "smaller photo", "q3": "commit the merge", "q4": "sing"}
    write_lines(folder / "queries" / "test.jsonl", [{"id": id_, "query": text} for id_, text in texts.items()])
    write_lines(folder / "queries" / "train.jsonl", [{"id": "r1", "query": "plot", "skill_ids": ["d"]}])
    golds = [("q1", "a", 1), ("q2", "b", 1), ("q3", "a", 1), ("q3", "c", 1), ("q3", "b", 0), ("q4", "a", 0)]
    rows = [{"query_id": query, "skill_id": skill, "relevance": relevance} for query, skill, relevance in golds]
    write_lines(folder / "qrels" / "test.jsonl", rows)
    write_lines(folder / "qrels" / "train.jsonl", [{"query_id": "r1", "skill_id": "d", "relevance": 1}])
    return folder
