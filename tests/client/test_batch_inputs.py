"""What a batch reads: positions, rejects with their lines, ids over all files, and shards that depend on rows alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillserve import rows as rows_module
from skillserve.errors import CatalogueError
from skillserve.records import Query
from skillserve.skillfile import pair_of, query_of, skill_of
from skillserve_client.batch import shards as shards_module
from skillserve_client.batch.inputs import Item, Sources
from skillserve_client.batch.receipts import Reject
from skillserve_client.batch.shards import cut_shards


def write(path: Path, *lines: dict[str, Any] | str | bytes) -> Path:
    texts = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"\n".join(text.encode() if isinstance(text, str) else text for text in texts) + b"\n")
    return path


def skills(*paths: Path) -> Sources[Any]:
    return Sources(paths=paths, parse=skill_of, needed=("name",), tree_of_skill_md=True)


def told(sources: Sources[Any]) -> list[tuple[int, str, str]]:
    """Row, where, and the reason or the id."""
    return [
        (found.row, found.where, found.reason if isinstance(found, Reject) else str(found.record.id))
        for found in sources
    ]


def test_every_row_has_its_place_and_every_fault_its_line(tmp_path: Path) -> None:
    first = write(
        tmp_path / "a.jsonl",
        {"id": "1", "name": "fine"},
        "{not json",
        "",
        {"id": "3", "body": 7},
        b'{"id": "4", "name": "\xff"}',
        {"id": "5", "name": "x", "body": 7, "description": 8},
        {"id": "h\ud800", "name": "half a pair"},
        {"id": "8", "name": "fine"},
    )
    second = write(tmp_path / "b.jsonl", {"id": "1", "name": "again"}, {"id": "9", "name": "fine"})
    found = told(skills(first, second))
    assert [row for row, _, _ in found] == list(range(9))
    reasons = {where: reason for _, where, reason in found}
    assert reasons["a.jsonl:1"] == "1"
    assert reasons["a.jsonl:2"].startswith("is no JSON")
    assert reasons["a.jsonl:4"] == "lacks a `name`"
    assert reasons["a.jsonl:5"].startswith("is not UTF-8")
    assert reasons["a.jsonl:6"] == "has a `description` that is no text; has a `body` that is no text"
    assert "surrogate" in reasons["a.jsonl:7"]
    assert reasons["b.jsonl:1"] == "repeats the id `1` of a.jsonl:1"
    assert (reasons["a.jsonl:8"], reasons["b.jsonl:2"]) == ("8", "9")
    assert skills(first, second).count() == 9
    ids = {found.where: found.id for found in skills(first, second) if isinstance(found, Reject)}
    assert (ids["a.jsonl:2"], ids["a.jsonl:4"], ids["b.jsonl:1"]) == (None, "3", "1")


def test_tables_and_folders_count_and_read_alike(tmp_path: Path) -> None:
    rows = [{"id": str(i), "name": f"n{i}", "body": "b" * i} for i in range(600)]
    plain = write(tmp_path / "s.jsonl", *rows)
    packed = tmp_path / "s.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), table := tmp_path / "s.parquet")
    tree = tmp_path / "tree"
    for name in ("one", "two"):
        (tree / name).mkdir(parents=True)
        (tree / name / "SKILL.md").write_text(f"---\nname: {name}\n---\nDo it.\n")
    records = [[item.record for item in skills(path)] for path in (plain, packed, table)]
    assert records[0] == records[1] == records[2]
    assert [skills(path).count() for path in (plain, packed, table, tree)] == [600, 600, 600, 2]
    assert [item.record.name for item in skills(tree)] == ["one", "two"]


def test_a_table_without_a_needed_column_is_refused_before_anything(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"id": "1", "text": "x"}]), table := tmp_path / "q.parquet")
    with pytest.raises(CatalogueError, match=r"q\.parquet.*columns id, text.*also query"):
        Sources(paths=[table], parse=query_of, needed=("id", "query")).check()
    with pytest.raises(CatalogueError, match="no such file"):
        skills(tmp_path / "nowhere.jsonl").check()


def test_a_file_that_breaks_off_is_one_reject_and_the_next_file_is_read(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"id": str(i), "name": f"name {i * i}"}) + "\n" for i in range(2000))
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(lines.encode())[:4000])
    no_table = tmp_path / "no.parquet"
    no_table.write_bytes(b"PAR1 but not really")
    sound = write(tmp_path / "sound.jsonl", {"id": "last", "name": "x"})
    found = told(skills(broken, no_table, sound))
    assert found[-1][2] == "last"
    assert found[-2][1:] == ("no.parquet", found[-2][2])
    assert "cannot be read" in found[-3][2]
    skills(broken, no_table, sound).count()


def test_a_row_of_megabytes_is_read_and_a_line_without_end_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 MB of text is a skill like another; a line beyond the bound is never in memory whole."""
    path = write(
        tmp_path / "s.jsonl",
        {"id": "big", "name": "x", "body": "word " * 1_000_000},
        {"id": "more", "name": "x", "body": "w" * (9 << 20)},
        {"id": "after", "name": "x"},
    )
    big, more, after = skills(path)
    assert isinstance(big, Item)
    assert isinstance(more, Reject)
    assert "more than 8,388,608" in more.reason
    assert isinstance(after, Item)
    monkeypatch.setattr(rows_module, "_MOST_LINE_BYTES", 1 << 20)
    assert [row[2][:20] for row in told(skills(path))] == ["is a line of more th", "is a line of more th", "after"]
    assert skills(path).count() == 3


def test_pairs_need_a_request_and_a_skill_and_no_id(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        {"query": "a", "skill_id": "s"},
        {"query": "a", "skill_id": "s"},
        {"id": 7, "query": "a", "skill_id": "s"},
        {"id": 7, "query": "b", "skill_id": "s"},
        {"query": " ", "skill_id": "s"},
        {"query": "a"},
        {"id": [1], "query": "a", "skill_id": "s"},
    )
    found = told(Sources(paths=[path], parse=pair_of, needed=("query", "skill_id")))
    assert [what for _, _, what in found] == [
        "None", "None", "7", "repeats the id `7` of p.jsonl:3", "lacks a `query`", "lacks a `skill_id`",
        "has an `id` that is no text: [1]",
    ]  # fmt: skip


def test_a_reason_quotes_no_more_than_it_must(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"id": "1", "query": "x", "skill_ids": "y" * 100_000})
    (found,) = Sources(paths=[path], parse=query_of, needed=("query",))
    assert isinstance(found, Reject)
    assert len(found.reason) < 600


def stream(texts: list[str | None]) -> list[Item[Query] | Reject]:
    """A row each; None is a faulty one."""
    return [
        Reject(row=i, source="s", where=f"s:{i}", id=None, reason="faulty")
        if text is None
        else Item(row=i, source="s", where=f"s:{i}", record=Query(id=str(i), text=text))
        for i, text in enumerate(texts)
    ]


rows_of = st.lists(st.none() | st.text(max_size=8), max_size=40)


@settings(deadline=None)  # a busy machine is no fault
@given(rows_of, st.integers(1, 9))
def test_every_row_is_in_one_shard_in_order(texts: list[str | None], shard_rows: int) -> None:
    shards = list(cut_shards(stream(texts), shard_rows=shard_rows))
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert all(shard.num_rows == shard_rows for shard in shards[:-1])
    found = [row for shard in shards for row in (*(i.row for i in shard.items), *(r.row for r in shard.rejects))]
    assert sorted(found) == list(range(len(texts)))
    starts = [shard.first_row for shard in shards]
    assert starts == [shard_rows * i for i in range(len(shards))]


@settings(deadline=None)
@given(rows_of, rows_of, st.integers(1, 9))
def test_a_shard_is_known_by_its_rows_alone(texts: list[str | None], more: list[str | None], shard_rows: int) -> None:
    """What follows changes no full shard before it; what differs in a shard changes that one."""
    before = list(cut_shards(stream(texts), shard_rows=shard_rows))
    after = list(cut_shards(stream(texts + more), shard_rows=shard_rows))
    full = len(texts) // shard_rows
    assert [shard.digest for shard in after[:full]] == [shard.digest for shard in before[:full]]
    if texts:
        changed = [*texts[:-1], None if texts[-1] is not None else "sound"]
        last = list(cut_shards(stream(changed), shard_rows=shard_rows))[-1]
        assert last.digest != before[-1].digest
        assert [s.digest for s in before] == [s.digest for s in cut_shards(stream(texts), shard_rows=shard_rows)]


def test_long_texts_end_a_shard_before_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "MOST_SHARD_BYTES", 1_000)
    shards = list(cut_shards(stream(["x" * 400] * 9), shard_rows=100))
    assert [shard.num_rows for shard in shards] == [3, 3, 3]
