"""What training reads, what it refuses, and what it must never see."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillserve.errors import CatalogueError
from skillserve.skillfile import MOST_TEXT_BYTES
from skillserve_training import read_none_requests, read_training_data

Change = Callable[[str, Callable[[list[dict[str, object]]], list[dict[str, object]]]], None]


@pytest.fixture
def change(tiny_data: Path) -> Change:
    """Rewrite the rows of one part of the train split."""

    def rewrite(part: str, change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> None:
        path = tiny_data / part / "train.jsonl"
        rows = change([json.loads(line) for line in path.read_text().splitlines()])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return rewrite


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


def test_parquet_holds_the_same_data_and_its_digest_is_of_the_rows(tiny_data: Path) -> None:
    plain = read_training_data(tiny_data)
    digests = set()
    for compression in ("zstd", "none"):
        for part in ("skills", "queries", "qrels"):
            path = tiny_data / part / "train.jsonl"
            if path.is_file():
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                path.unlink()
            else:
                rows = pq.read_table(path.with_suffix(".parquet")).to_pylist()
            table = pa.Table.from_pylist(rows)
            pq.write_table(
                table.select(table.column_names[::-1]), path.with_suffix(".parquet"), compression=compression
            )
        data = read_training_data(tiny_data)
        digests.add(data.digest)
        assert replace(data, digest=plain.digest) == plain
    assert len(digests) == 1


def test_the_skills_of_a_split_may_be_a_tree_of_skill_md(tiny_data: Path) -> None:
    plain = read_training_data(tiny_data)
    (tiny_data / "skills" / "train.jsonl").unlink()
    for skill in plain.skills:
        document = tiny_data / "skills" / "train" / skill.id / "SKILL.md"
        document.parent.mkdir(parents=True)
        document.write_text(f"---\nname: {skill.name}\ndescription: {skill.description}\n---\n{skill.body}\n")
    data = read_training_data(tiny_data)
    assert sorted(data.skills, key=lambda skill: skill.id) == sorted(plain.skills, key=lambda skill: skill.id)
    assert data.golds == plain.golds
    before = data.digest
    document.write_text(document.read_text() + "more\n")
    assert read_training_data(tiny_data).digest != before


def test_two_files_for_one_part_are_refused(tiny_data: Path) -> None:
    """Which of them is meant, nobody can say; an old one beside a new one is trained on by mistake."""
    (tiny_data / "skills" / "train.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(CatalogueError, match=r"skills/train\.jsonl and skills/train\.jsonl\.gz"):
        read_training_data(tiny_data)


def test_faults_of_several_files_are_listed_at_once(tiny_data: Path, change: Change) -> None:
    change("skills", lambda rows: [*rows, rows[0], {"id": "empty", "name": "only a name"}])
    change("queries", lambda rows: [*rows, {"id": "blank", "query": " "}])
    (tiny_data / "qrels" / "train.jsonl").unlink()
    with pytest.raises(CatalogueError) as error:
        read_training_data(tiny_data)
    for said in ("repeats the id `sql-test`", "lacks a `query`", "no qrels/train file"):
        assert said in str(error.value)


def test_a_skill_without_texts_is_a_fault(tiny_data: Path, change: Change) -> None:
    change("skills", lambda rows: [*rows, {"id": "empty", "name": "only a name"}])
    with pytest.raises(CatalogueError, match="`empty` has neither description nor body"):
        read_training_data(tiny_data)


def test_judgements_of_other_data_are_one_fault_and_not_one_a_request(tiny_data: Path, change: Change) -> None:
    change("qrels", lambda rows: [row | {"query_id": f"other-{row['query_id']}"} for row in rows])
    with pytest.raises(CatalogueError, match=r"1 fault.*none of the 32 requests.*such as `other-q-"):
        read_training_data(tiny_data)
    change("qrels", lambda _: [])
    with pytest.raises(CatalogueError, match=r"1 fault.*none of the 32 requests.*they are empty"):
        read_training_data(tiny_data)


@pytest.mark.parametrize("part", ["skills", "queries"])
def test_an_empty_split_is_a_fault(tiny_data: Path, change: Change, part: str) -> None:
    change(part, lambda _: [])
    with pytest.raises(CatalogueError, match=rf"no {'skills' if part == 'skills' else 'requests'}"):
        read_training_data(tiny_data)


def test_a_text_of_a_megabyte_is_read_and_one_beyond_the_limit_is_a_fault(tiny_data: Path, change: Change) -> None:
    change("skills", lambda rows: [rows[0] | {"body": "word " * 200_000}, *rows[1:]])
    assert len(read_training_data(tiny_data).skills[0].body) == 1_000_000
    change("skills", lambda rows: [rows[0] | {"body": "x" * (MOST_TEXT_BYTES + 1)}, *rows[1:]])
    with pytest.raises(CatalogueError, match="8,388,609 bytes, more than 8,388,608"):
        read_training_data(tiny_data)


def test_rows_of_one_request_are_one_request_with_all_their_golds(tiny_data: Path, change: Change) -> None:
    """SkillRet's own scripts merge such rows."""
    before = read_training_data(tiny_data)
    change("queries", lambda rows: [*rows, rows[0]])
    assert read_training_data(tiny_data).queries == before.queries
    change("queries", lambda rows: [*rows, rows[0] | {"query": "something else"}])
    with pytest.raises(CatalogueError, match="with another text"):
        read_training_data(tiny_data)


def test_a_skill_on_both_sides_is_refused_by_its_id_or_by_its_texts(tiny_data: Path) -> None:
    rows = [json.loads(line) for line in (tiny_data / "skills" / "train.jsonl").read_text().splitlines()]
    test = [
        rows[0] | {"body": "rewritten"},
        rows[1] | {"id": "renamed", "namespace": "somebody else"},
        rows[2] | {"id": "same-name-only", "body": "another"},
    ]
    (tiny_data / "skills" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    with pytest.raises(CatalogueError) as error:
        read_training_data(tiny_data)
    message = str(error.value)
    assert "2 fault(s)" in message
    assert f"`{rows[0]['id']}` is in the test split too" in message
    assert f"`{rows[1]['id']}` has name, description and body of the test skill `renamed`" in message


def test_requests_that_nothing_fits_are_read_apart(tiny_data: Path, sample_data: Path) -> None:
    assert read_none_requests(tiny_data) == ()
    none = read_none_requests(sample_data)
    assert len(none) > 10
    assert {query.id for query in none}.isdisjoint(query.id for query in read_training_data(sample_data).queries)
    path = tiny_data / "queries" / "train-none.jsonl"
    path.write_text(json.dumps({"id": "n", "query": "a cake", "skill_ids": ["sql-test"]}) + "\n")
    with pytest.raises(CatalogueError, match="`n`: has fitting skills: sql-test"):
        read_none_requests(tiny_data)


def test_training_opens_no_test_request_and_no_test_judgement(
    tiny_data: Path, tiny_embedder: Path, tmp_path: Path
) -> None:
    """An audit hook sees every file that Python opens in whole runs; what must not be read is no JSON either."""
    for part in ("queries", "qrels"):
        (tiny_data / part / "test.jsonl").write_bytes(b"\xff not JSON")
        (tiny_data / part / "test-none.jsonl").write_bytes(b"\xff not JSON")
    (tiny_data / "skills" / "test.jsonl").write_text('{"id": "other", "name": "a", "body": "b"}\n')
    common = ["--data", str(tiny_data), "--base", str(tiny_embedder), "--max-tokens", "48", "--epochs", "1"]
    runs = [
        ["train", "embedder", *common, "--out", str(tmp_path / "e")],
        [
            "mine",
            "--data",
            str(tiny_data),
            "--with",
            "bm25",
            "--with",
            str(tmp_path / "e"),
            "--out",
            str(tmp_path / "m"),
        ],
        ["train", "reranker", *common, "--embedder", str(tmp_path / "e"), "--out", str(tmp_path / "r")],
    ]
    code = f"""
import sys
opened = set()
sys.addaudithook(lambda event, given: opened.add(str(given[0])) if event == "open" else None)
from skillserve.cli import main
codes = [main(run) for run in {runs!r}]
print("CODES", codes)
print("OPENED", *sorted(path for path in opened if path.startswith({str(tiny_data)!r})), sep="\\n")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CODES [0, 0, 0]" in result.stdout, result.stderr
    opened = {Path(line).relative_to(tiny_data).as_posix() for line in result.stdout.split("OPENED\n")[1].splitlines()}
    assert opened == {f"{part}/train.jsonl" for part in ("skills", "queries", "qrels")} | {"skills/test.jsonl"}
