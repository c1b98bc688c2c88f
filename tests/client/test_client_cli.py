"""`skillserve index` and `skillserve search`, through the command table and a gRPC server."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from skillserve.cli import main
from skillserve.settings import ClientSettings, IndexSettings


class _Line:
    """Runs commands against the world's server and folders."""

    def __init__(self, world: IndexSettings, client: ClientSettings, capsys: pytest.CaptureFixture[str]) -> None:
        self._bundles = ["--bundles", str(world.bundles), "--url", client.url]
        self._models = ["--models", str(world.models)]
        self._capsys = capsys

    def run(self, command: str, *arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        more = self._bundles + (self._models if command == "index" else [])
        code = main([command, *map(str, arguments), *more])
        done = self._capsys.readouterr()
        return code, done.out, done.err


@pytest.fixture
def line(
    world: IndexSettings,
    wire_settings: ClientSettings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> _Line:
    monkeypatch.chdir(tmp_path)
    return _Line(world, wire_settings, capsys)


@pytest.fixture
def indexed(line: _Line, catalogue: Path) -> _Line:
    assert line.run("index", catalogue)[0] == 0
    return line


def test_index_publishes_once_and_then_is_current(line: _Line, catalogue: Path, judged_file: Path) -> None:
    code, out, _ = line.run("index", catalogue, "--queries", judged_file, "--json")
    first = json.loads(out)
    assert (code, first["status"], first["num_skills"], first["quality"]["requests"]) == (0, "published", 5, 3)
    again = json.loads(line.run("index", catalogue, "--json")[1])
    assert (again["status"], again["version"]) == ("current", first["version"])
    assert json.loads(line.run("index", catalogue, "--force", "--json")[1])["status"] == "published"


def test_index_shows_both_stages_to_people(line: _Line, catalogue: Path, judged_file: Path) -> None:
    code, out, _ = line.run("index", catalogue, "--queries", judged_file)
    assert code == 0
    assert all(words in out for words in ("published", "first stage", "reranked", "ndcg@10"))


def test_search_prints_one_object_a_request(indexed: _Line, judged_file: Path) -> None:
    code, out, _ = indexed.run("search", "merge pdf", "--json", "--top-k", 2)
    answer = json.loads(out)
    assert (code, answer["query"], answer["status"], len(answer["hits"])) == (0, "merge pdf", "ok", 2)
    assert answer["hits"][0]["skill_id"] == "pdf"
    many = [json.loads(row) for row in indexed.run("search", "--file", judged_file, "--json")[1].splitlines()]
    assert [row["id"] for row in many] == ["q1", "q2", "q3", "q4"]


def test_search_shows_people_hits_times_and_notes(indexed: _Line) -> None:
    code, out, _ = indexed.run("search", "resize images " * 100)
    assert code == 0
    assert all(words in out for words in ("rank", "images", "ms: tokenise", "bundle 2", "embedder eeee", "note: "))


def test_search_reads_requests_from_stdin(indexed: _Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("merge pdf\n\ngit commit\n"))
    rows = [json.loads(row) for row in indexed.run("search", "--json")[1].splitlines()]
    assert [row["hits"][0]["skill_id"] for row in rows] == ["pdf", "git"]


def test_a_run_file_is_trec_and_ordered_by_rank(indexed: _Line, judged_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.run"
    code, out, _ = indexed.run("search", "--file", judged_file, "--run-out", path, "--rerank-depth", 2, "--top-k", 4)
    assert (code, out) == (0, "")
    rows = [row.split() for row in path.read_text().splitlines()]
    assert len(rows) == 16
    assert [row[:2] + row[3:] for row in rows[:4]] == [
        ["q1", "Q0", str(rank), str(5 - rank), "skillserve"] for rank in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["search", "  "], 2, "QueryError"),
        (["search", "x", "--file", "y.jsonl"], 2, "UsageError"),
        (["search", "x", "--run-out", "y.run"], 2, "UsageError"),
        (["search", "x", "--top-k", "0"], 2, "ConfigError"),
        (["search", "--file", "absent.jsonl"], 2, "CatalogueError"),
        (["index", "absent.jsonl"], 2, "CatalogueError"),
        (["index", "skills.jsonl", "--qrels", "y.jsonl"], 2, "UsageError"),
    ],
)
def test_misuse_is_told_as_json_with_its_exit_code(arguments: list[str], code: int, kind: str, indexed: _Line) -> None:
    found, out, err = indexed.run(*arguments, "--json")
    assert (found, json.loads(out)["error"]) == (code, kind)
    assert "skillserve:" in err


def test_no_request_at_all_is_refused(indexed: _Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert indexed.run("search")[0] == 2


def test_contract_and_server_faults_have_their_exit_codes(
    indexed: _Line, world: IndexSettings, wire_server: Any
) -> None:
    wire_server.stop()
    assert indexed.run("search", "pdf")[0] == 5
    (world.bundles / "CURRENT").write_text("x")
    assert indexed.run("search", "pdf")[0] == 4


@pytest.mark.parametrize("place", ["skills.jsonl/out.run", "."])
def test_a_run_that_cannot_be_written_is_refused_before_any_search(
    place: str, indexed: _Line, judged_file: Path, tmp_path: Path, wire_server: Any
) -> None:
    sent = len(wire_server.requests)
    code, _, err = indexed.run("search", "--file", judged_file, "--run-out", tmp_path / place)
    assert code == 2
    assert "--run-out" in err
    assert len(wire_server.requests) == sent


def test_a_hybrid_bundle_is_one_flag_and_searching_a_plain_one_as_such_is_refused(line: _Line, catalogue: Path) -> None:
    code, out, _ = line.run("index", catalogue, "--lexical-weight", 0.2, "--json")
    assert (code, json.loads(out)["lexical_weight"]) == (0, 0.2)
    assert line.run("search", "merge pdf", "--lexical-weight", 1)[0] == 0
    code, out, _ = line.run("index", catalogue, "--part-weight", 1, "--json")
    assert (code, json.loads(out)["lexical_weight"], json.loads(out)["part_weight"]) == (0, 0, 1)
    assert line.run("search", "merge pdf", "--part-weight", 0)[0] == 0
    code, _, err = line.run("search", "merge pdf", "--lexical-weight", 1)
    assert code == 2
    assert "skillserve index CATALOGUE --lexical-weight 1" in " ".join(err.split())


def test_a_bundle_in_milvus_is_built_and_searched_by_the_same_commands(
    line: _Line, catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address may stand in the file of settings, as a service would have it."""
    where = ["--uri", tmp_path / "lite.db"]
    code, out, err = line.run("index", catalogue, "--kind", "milvus", "--alias", "cli", *where, "--json")
    assert (code, json.loads(out)["index_kind"], json.loads(out)["collection"]["alias"]) == (0, "milvus", "cli"), err
    found = json.loads(line.run("search", "merge pdf", *where, "--json")[1])
    assert found["hits"][0]["skill_id"] == "pdf"
    code, _, err = line.run("search", "merge pdf")
    assert code == 2
    assert "--uri" in err
    (tmp_path / "skillserve.toml").write_text(
        f'[index]\nkind = "milvus"\nalias = "cli"\nuri = "{tmp_path / "lite.db"}"\n'
    )
    monkeypatch.setenv("SKILLSERVE_INDEX_TOKEN", "unused")
    assert json.loads(line.run("index", catalogue, "--json")[1])["status"] == "current"
    assert (
        json.loads(line.run("search", "merge pdf", "--namespace", "acme", "--json")[1])["hits"][0]["skill_id"] == "pdf"
    )
    (tmp_path / "skillserve.toml").write_text('[index]\ntoken = "s3cret"\n')
    code, _, err = line.run("search", "merge pdf")
    assert code == 2
    assert "s3cret" not in err
