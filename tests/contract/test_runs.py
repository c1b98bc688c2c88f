"""Run files: what was written is read back in the same order, and every fault of a foreign file is told."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillserve.errors import CatalogueError, UsageError
from skillserve.metrics import ranked
from skillserve.records import Query, Skill
from skillserve.runs import by_rank, open_run, read_run, require_writable, write_run
from skillserve.settings import Settings

_ids = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=4)
_scores = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(_ids, st.dictionaries(_ids, _scores, min_size=1, max_size=6), min_size=1, max_size=3))
def test_a_run_survives_the_round_trip_bit_by_bit(run: dict[str, dict[str, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.run"
        write_run(path, run)
        again = read_run(path)
    assert again.keys() == run.keys()
    for query, scores in run.items():
        assert ranked(again[query]) == list(again[query]) == ranked(scores)
        assert {skill: np.float32(score) for skill, score in again[query].items()} == scores


def test_a_line_has_trecs_six_columns(tmp_path: Path) -> None:
    write_run(tmp_path / "a.run", {"q": by_rank(["b", "a"])})
    assert (tmp_path / "a.run").read_text() == "q Q0 b 1 2 skillserve\nq Q0 a 2 1 skillserve\n"


def test_every_faulty_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.run"
    path.write_text("q Q0 a 1 0.5 x\n\nq Q0 b 2\nq Q0 c 3 high x\nq Q0 d 4 nan x\nq Q0 a 5 0.1 x\n")
    with pytest.raises(CatalogueError) as caught:
        read_run(path)
    for said in (
        "4 fault(s)",
        "bad.run:3: has 4 columns",
        "bad.run:4",
        "'high'",
        "bad.run:5",
        "bad.run:6",
        "`a` again",
    ):
        assert said in caught.value.got


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe q Q0"])
def test_a_file_without_rankings_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.run").write_bytes(content)
    with pytest.raises(CatalogueError, match=r"a\.run"):
        open_run(str(tmp_path / "a.run"), Settings())


@pytest.mark.parametrize("run", [{"q 1": {"a": 1.0}}, {"q": {"a\tb": 1.0}}, {"q": {"": 1.0}}])
def test_an_id_that_would_break_the_columns_is_refused(run: dict[str, dict[str, float]], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="white space"):
        write_run(tmp_path / "a.run", run)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_said_before_and_after(tmp_path: Path) -> None:
    for write in (require_writable, lambda path: write_run(path, {"q": {"a": 1.0}})):
        with pytest.raises(UsageError, match="--run-out"):
            write(tmp_path)
    require_writable(tmp_path / "new" / "a.run")
    assert not list((tmp_path / "new").iterdir())


def test_a_run_as_a_system_ranks_what_it_is_asked_and_no_deeper(tmp_path: Path) -> None:
    path = tmp_path / "a.run"
    write_run(path, {"q1": {"a": 1.0, "b": 3.0, "c": 2.0}, "q2": {"a": 1.0}, "other": {"unknown": 1.0}})
    system = open_run(str(path), Settings())
    queries, skills = [Query(id=f"q{i}", text="x") for i in (1, 2, 3)], [Skill(id=i, name=i) for i in "abc"]
    assert system.rank(queries, skills, depth=2) == {"q1": {"b": 3.0, "c": 2.0}, "q2": {"a": 1.0}}
    assert (system.name, dict(system.digests)) == (f"run:{path}", {})
    with pytest.raises(CatalogueError, match=r"1 ranked skills.*c.*--pool union"):
        system.rank(queries, skills[:2], depth=2)
