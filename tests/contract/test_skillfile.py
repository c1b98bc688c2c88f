"""Reading catalogues: every faulty line is reported at once, with its number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillserve.errors import CatalogueError
from skillserve.skillfile import read_qrels, read_queries, read_skills, split_file

ROWS = [
    {"id": "1", "name": "a", "description": "x", "body": "y", "namespace": "n", "license": "MIT", "skill_md": None},
    {"id": "2", "name": "a", "skill_md": "z"},
]


def write_lines(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


def test_jsonl_gzip_and_parquet_read_the_same(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in ROWS]
    plain = write_lines(tmp_path / "s.jsonl", *lines)
    packed = tmp_path / "s.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    table = tmp_path / "s.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    skills = read_skills(plain)
    assert read_skills(packed) == skills
    assert read_skills(table) == skills
    assert skills[0].fields == {"license": "MIT"}
    assert skills[1].body == "z"


def test_every_fault_is_reported_with_its_line(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "bad.jsonl",
        '{"id": "1", "name": "fine"}',
        "{not json",
        '{"id": "3"}',
        '{"id": "1", "name": "again"}',
        b'{"id": "5", "name": "\xff"}',
        '["no", "object"]',
        '{"id": "7", "name": "x", "body": 7}',
    )
    with pytest.raises(CatalogueError) as caught:
        read_skills(path)
    message = str(caught.value)
    assert "6 fault(s)" in message
    for part in (
        "bad.jsonl:2: is no JSON",
        "bad.jsonl:3: lacks a `name`",
        "bad.jsonl:4: repeats the id `1` of bad.jsonl:1",
        "bad.jsonl:5: is not UTF-8",
        "bad.jsonl:6: is no JSON object",
        "bad.jsonl:7: has a `body` that is no text",
    ):
        assert part in message


def test_many_faults_are_counted_not_all_shown(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"50 fault.*and 30 more"):
        read_skills(write_lines(tmp_path / "bad.jsonl", *["x"] * 50))


def test_skill_md_folders_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "team" / "sql"
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(
        "---\nname: sql-tuner\ndescription: >\n  Makes it\n  fast.\n---\n\n# Steps\n---\nmore\n"
    )
    [skill] = read_skills(tmp_path)
    assert (skill.id, skill.name) == ("team/sql", "sql-tuner")
    assert skill.description.strip() == "Makes it fast."
    assert skill.body == "# Steps\n---\nmore"


@pytest.mark.parametrize("text", ["no front matter", "---\nname: [\n---\nx", "---\n- a\n---\nx", "---\nname: x\n"])
def test_a_skill_md_without_front_matter_is_named(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "SKILL.md").write_text(text)
    with pytest.raises(CatalogueError, match=r"one/SKILL\.md"):
        read_skills(tmp_path)


def test_shipped_skill_md_folders_are_read() -> None:
    skills = read_skills(Path(__file__).parent.parent.parent / "examples" / "skills")
    assert len(skills) >= 3
    assert all(skill.description and skill.body for skill in skills)


def test_an_absent_or_empty_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="no such file"):
        read_skills(tmp_path / "absent")
    with pytest.raises(CatalogueError, match="holds no SKILL"):
        read_skills(tmp_path)
    with pytest.raises(CatalogueError, match="no skills"):
        read_skills(write_lines(tmp_path / "empty.jsonl", ""))
    with pytest.raises(CatalogueError, match="no Parquet file"):
        read_skills(write_lines(tmp_path / "x.parquet", "nothing"))
    with pytest.raises(CatalogueError, match="cannot be read"):
        read_skills(write_lines(tmp_path / "x.jsonl.gz", "nothing"))


def test_requests_and_judgements(tmp_path: Path) -> None:
    queries = write_lines(
        tmp_path / "q.jsonl", '{"id": "q1", "query": "x", "skill_ids": ["a"]}', '{"id": "q2", "query": "y"}'
    )
    assert [query.skill_ids for query in read_queries(queries)] == [("a",), ()]
    with pytest.raises(CatalogueError, match="lacks a `query`"):
        read_queries(write_lines(tmp_path / "q2.jsonl", '{"id": "q1", "query": "  "}'))
    qrels = write_lines(tmp_path / "r.jsonl", '{"query_id": "q1", "skill_id": "a", "relevance": 1}')
    assert read_qrels(qrels) == {"q1": {"a": 1}}
    with pytest.raises(CatalogueError, match="integer `relevance`"):
        read_qrels(write_lines(tmp_path / "r2.jsonl", '{"query_id": "q1"}'))


def test_no_requests_are_as_wrong_as_no_skills(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="no requests"):
        read_queries(write_lines(tmp_path / "empty.jsonl", ""))


@pytest.mark.parametrize("golds", ['"s12"', "5", '{"s": 1}', '["s", null]', "[true]", '[""]', "[1.5]"])
def test_gold_skills_that_are_no_list_of_ids_are_a_fault(tmp_path: Path, golds: str) -> None:
    """A bare text would otherwise become its letters."""
    path = write_lines(tmp_path / "q.jsonl", f'{{"id": "q", "query": "x", "skill_ids": {golds}}}')
    with pytest.raises(CatalogueError, match=r"q\.jsonl:1: has `skill_ids` that are no list of ids"):
        read_queries(path)


def test_whole_numbers_are_ids_everywhere(tmp_path: Path) -> None:
    """Else skills, requests and judgements of one data set would not meet."""
    [skill] = read_skills(write_lines(tmp_path / "s.jsonl", '{"id": 0, "name": "a"}'))
    [query] = read_queries(write_lines(tmp_path / "q.jsonl", '{"id": 7, "query": "x", "skill_ids": [0]}'))
    qrels = read_qrels(write_lines(tmp_path / "r.jsonl", '{"query_id": 7, "skill_id": 0, "relevance": 1}'))
    assert (skill.id, query.id, query.skill_ids, qrels) == ("0", "7", ("0",), {"7": {"0": 1}})


@pytest.mark.parametrize("identity", ["1.5", "true", '["a"]', "{}"])
def test_other_ids_are_faults_everywhere(tmp_path: Path, identity: str) -> None:
    with pytest.raises(CatalogueError, match="`id` that is no text"):
        read_skills(write_lines(tmp_path / "s.jsonl", f'{{"id": {identity}, "name": "a"}}'))
    with pytest.raises(CatalogueError, match="lacks an `id`"):
        read_queries(write_lines(tmp_path / "q.jsonl", f'{{"id": {identity}, "query": "x"}}'))
    with pytest.raises(CatalogueError, match="needs `query_id`"):
        read_qrels(write_lines(tmp_path / "r.jsonl", f'{{"query_id": {identity}, "skill_id": "a", "relevance": 1}}'))


def test_the_sample_is_sound(sample_data: Path) -> None:
    """At least 200 skills in 18 sub-categories, at least 300 requests, disjoint splits, golds that exist."""
    skills = {split: read_skills(split_file(sample_data, "skills", split)) for split in ("train", "test")}
    queries = {split: read_queries(split_file(sample_data, "queries", split)) for split in ("train", "test")}
    ids = {split: {skill.id for skill in part} for split, part in skills.items()}
    names = {split: {skill.name for skill in part} for split, part in skills.items()}
    assert not ids["train"] & ids["test"]
    assert not names["train"] & names["test"]
    assert sum(map(len, ids.values())) >= 200
    assert sum(map(len, queries.values())) >= 300
    assert len({skill.fields["sub"] for part in skills.values() for skill in part}) == 18
    for split, part in queries.items():
        judged = read_qrels(split_file(sample_data, "qrels", split))
        for query in part:
            assert set(query.skill_ids) <= ids[split]
            assert set(judged[query.id]) == set(query.skill_ids)
    with pytest.raises(CatalogueError, match="SkillRet"):
        split_file(sample_data, "skills", "dev")


def test_where_skillrets_whole_file_is_given_it_is_the_body(tmp_path: Path) -> None:
    """Its models read `name | description | skill_md`; the front matter in it is part of what they have learnt."""
    whole = "---\nname: a\n---\n# Steps"
    rows = [
        {"id": "1", "name": "a", "body": "# Steps", "skill_md": whole},
        {"id": "2", "name": "a", "body": "# Steps", "skill_md": " "},
        {"id": "3", "name": "a", "body": "# Steps"},
    ]
    skills = read_skills(write_lines(tmp_path / "s.jsonl", *map(json.dumps, rows)))
    assert [skill.body for skill in skills] == [whole, "# Steps", "# Steps"]
    assert not any(skill.fields for skill in skills)
    with pytest.raises(CatalogueError, match="`skill_md` that is no text"):
        read_skills(write_lines(tmp_path / "s.jsonl", json.dumps(rows[0] | {"skill_md": 1})))


@pytest.mark.parametrize("relevance", ["0.5", "NaN", "Infinity", '"high"', "null", "[1]"])
def test_a_relevance_that_is_no_whole_number_is_a_fault(tmp_path: Path, relevance: str) -> None:
    """Cut to an integer, 0.5 would silently make a gold a skill that does not fit."""
    line = f'{{"query_id": "q", "skill_id": "s", "relevance": {relevance}}}'
    with pytest.raises(CatalogueError, match="integer `relevance`"):
        read_qrels(write_lines(tmp_path / "r.jsonl", line))


def test_a_pair_may_be_judged_again_but_not_differently(tmp_path: Path) -> None:
    lines = [f'{{"query_id": "q", "skill_id": "s", "relevance": {relevance}}}' for relevance in ("1", '"1"', "1.0")]
    assert read_qrels(write_lines(tmp_path / "r.jsonl", *lines)) == {"q": {"s": 1}}
    with pytest.raises(CatalogueError, match="again, and differently"):
        read_qrels(write_lines(tmp_path / "r.jsonl", lines[0], lines[0].replace("1", "0")))


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": ' + "1" * 5_000 + ', "name": "a"}'])
def test_json_that_breaks_its_reader_is_a_fault_of_its_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(CatalogueError, match=r"s\.jsonl:1: is no JSON"):
        read_skills(write_lines(tmp_path / "s.jsonl", line))


def test_a_damaged_parquet_file_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS * 500), path, compression="none")
    content = bytearray(path.read_bytes())
    content[20:400] = b"\xff" * 380
    path.write_bytes(content)
    with pytest.raises(CatalogueError, match=r"s\.parquet: is no Parquet file"):
        read_skills(path)
