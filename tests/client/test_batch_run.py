"""Jobs from files to folders: equal to the plain client, resumed without repeating, and every refusal."""

from __future__ import annotations

import fcntl
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from skillserve.cli import main
from skillserve.errors import BundleError, CatalogueError, OutputError, ServerError
from skillserve.publish import sha256_of
from skillserve.settings import IndexSettings, SearchSettings
from skillserve.skillfile import read_queries, read_skills
from skillserve_client import Searcher, build_bundle, open_bundle
from skillserve_client.batch.crew import Alone
from skillserve_client.batch.embed import EmbedJob
from skillserve_client.batch.engine import Engine
from skillserve_client.batch.jobs import Job
from skillserve_client.batch.pairs import PairsJob
from skillserve_client.batch.rank import RankJob
from skillserve_client.batch.run import Run, Spec
from skillserve_client.batch.watching import Summary
from skillserve_client.models import read_sources

QUERIES = ["resize photo", "merge pdf table", "git commit tests", "   send ", "chart plot", "\u0000", "deploy cloud"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def carry_out(job: Job[Any, Any], inference: Any, out: Path, **changes: Any) -> Summary:
    """Run a job as the command does."""
    spec = Spec(out=out, **{"engine_name": "server", "shard_rows": 2} | changes)
    with Engine(inference, num_workers=2, max_run_tokens=64, patience_s=0.0) as engine:
        return Run(job, Alone(job, engine), spec).carry_out()


def rows_of(out: Path) -> list[dict[str, Any]]:
    """All results, in the order of the input."""
    rows: list[dict[str, Any]] = []
    for file in sorted((out / "shards").iterdir()):
        if file.suffix == ".parquet":
            rows += pq.read_table(file).to_pylist()
        else:
            rows += [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["row"] for row in rows] == sorted(row["row"] for row in rows)
    return rows


def rejects_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]


def files_of(out: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in (out / "shards").iterdir()}


@pytest.fixture
def embed(world: IndexSettings, fake: Any) -> Callable[..., EmbedJob]:
    def make(*paths: Path) -> EmbedJob:
        return EmbedJob.of(paths, read_sources(world.models, fake, roles=("embedder",))["embedder"])

    return make


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    return write(tmp_path / "requests.jsonl", [{"id": f"q{i}", "query": text} for i, text in enumerate(QUERIES)])


def test_embeddings_are_those_of_the_bundle(
    embed: Any, bundles: Path, catalogue: Path, fake: Any, tmp_path: Path
) -> None:
    summary = carry_out(embed(catalogue), fake, tmp_path / "out")
    bundle = open_bundle(bundles)
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == bundle.corpus.skills.ids()
    found = np.array([row["embedding"] for row in rows], np.float32)
    assert np.array_equal(found, bundle.corpus.index._index.reconstruct_n(0, len(rows)))
    assert (summary.num_scored, summary.num_shards, summary.num_rejects) == (5, 3, 0)
    metadata = pq.read_metadata(next((tmp_path / "out" / "shards").iterdir())).metadata
    identity = json.loads(metadata[b"skillserve.identity"])
    assert identity["models"]["embedder"]["digest"] == "e" * 64
    assert identity["job"] == "embed"
    column = pq.ParquetFile(next((tmp_path / "out" / "shards").iterdir())).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.3, 0.0), (0.3, 1.0)])
def test_rankings_are_those_of_the_searcher(
    world: IndexSettings, catalogue: Path, queries: Path, fake: Any, tmp_path: Path, weights: tuple[float, float]
) -> None:
    index = world.model_copy(update={"lexical_weight": weights[0], "part_weight": weights[1]})
    build_bundle(catalogue, fake, index=index)
    settings = SearchSettings(candidates=4, rerank_depth=3, top_k=4)
    bundle = open_bundle(world.bundles)
    summary = carry_out(RankJob.of([queries], bundle, settings), fake, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    searcher = Searcher(bundle, fake, settings)
    for row in rows:
        answer = searcher.search(QUERIES[row["row"]]).to_dict()
        for hit, wanted in zip(row["hits"], answer["hits"], strict=True):
            assert {**hit, "score": np.float32(hit["score"])} == {**wanted, "score": np.float32(wanted["score"])}
        assert {name: row[name] for name in ("status", "notes", "reranked")} == {
            "status": "ok",
            "notes": list(answer["notes"]),
            "reranked": True,
        }
    assert [reject["id"] for reject in rejects_of(tmp_path / "out")] == ["q5"]
    assert "no readable text" in rejects_of(tmp_path / "out")[0]["reason"]
    assert (summary.num_scored, summary.num_rejects) == (6, 1)


def test_embed_only_rankings_ask_no_reranker(bundles: Path, queries: Path, fake: Any, tmp_path: Path) -> None:
    job = RankJob.of([queries], open_bundle(bundles), SearchSettings(rerank_depth=0))
    carry_out(job, fake, tmp_path / "out")
    assert {role for role, _, _ in fake.calls} == {"embedder"}
    assert not any(row["reranked"] for row in rows_of(tmp_path / "out"))


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.3, 1.0)])
def test_pairs_have_the_scores_that_a_search_gives_them(
    world: IndexSettings, catalogue: Path, fake: Any, tmp_path: Path, weights: tuple[float, float]
) -> None:
    index = world.model_copy(update={"lexical_weight": weights[0], "part_weight": weights[1]})
    build_bundle(catalogue, fake, index=index)
    bundle = open_bundle(world.bundles)
    hits = {
        (query, hit.skill_id): hit
        for query in QUERIES[:3]
        for hit in Searcher(bundle, fake, SearchSettings(rerank_depth=5, top_k=5)).search(query).hits
    }
    pairs = [{"query": query, "skill_id": skill_id} for query, skill_id in hits]
    pairs += [{"id": "lost", "query": "git", "skill_id": "nobody"}, {"query": "\u0000", "skill_id": "git"}]
    path = write(tmp_path / "pairs.jsonl", pairs)
    carry_out(PairsJob.of([path], bundle, SearchSettings()), fake, tmp_path / "out", shard_rows=4)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 15
    for row, ((_, skill_id), hit) in zip(rows, hits.items(), strict=True):
        assert (row["skill_id"], np.float32(row["score"])) == (skill_id, np.float32(hit.score))
        assert np.float32(row["similarity"]) == np.float32(hit.similarity)
    reasons = [(reject["id"], reject["reason"]) for reject in rejects_of(tmp_path / "out")]
    assert reasons[0][0] == "lost"
    assert "`nobody`, which is not in bundle" in reasons[0][1]
    assert "no readable text" in reasons[1][1]


def test_pairs_need_a_reranker(world: IndexSettings, catalogue: Path, fake: Any, tmp_path: Path) -> None:
    for file in (world.models / "skill_reranker").iterdir():
        file.unlink()
    build_bundle(catalogue, fake, index=world)
    with pytest.raises(BundleError, match="no reranker"):
        PairsJob.of([tmp_path / "p.jsonl"], open_bundle(world.bundles), SearchSettings())


def test_lines_hold_what_the_table_holds(bundles: Path, queries: Path, fake: Any, tmp_path: Path) -> None:
    job = RankJob.of([queries], open_bundle(bundles), SearchSettings(top_k=2))
    for file_format in ("parquet", "jsonl"):
        carry_out(job, fake, tmp_path / file_format, file_format=file_format)
    table, lines = rows_of(tmp_path / "parquet"), rows_of(tmp_path / "jsonl")
    for row, line in zip(table, lines, strict=True):
        assert row.keys() == line.keys()
        assert [hit["skill_id"] for hit in row["hits"]] == [hit["skill_id"] for hit in line["hits"]]
        assert np.allclose([h["score"] for h in row["hits"]], [h["score"] for h in line["hits"]], rtol=1e-6)


def test_a_run_that_failed_goes_on_and_repeats_nothing(embed: Any, catalogue: Path, fake: Any, tmp_path: Path) -> None:
    whole = carry_out(embed(catalogue), fake, tmp_path / "whole")
    sent = [len(sequences) for _, sequences, _ in fake.calls]
    fake.calls.clear()
    infer, most = fake.infer, 2

    def failing(*args: Any, **how: Any) -> Any:
        if len(fake.calls) >= most:
            fake.calls.clear()
            raise OSError("the machine went away")
        return infer(*args, **how)

    fake.infer = failing
    with pytest.raises(OSError, match="went away"):
        carry_out(embed(catalogue), fake, tmp_path / "out")
    fake.infer = infer
    done = len(list((tmp_path / "out" / "receipts").iterdir()))
    assert 0 < done < 3
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "running"
    fake.calls.clear()
    summary = carry_out(embed(catalogue), fake, tmp_path / "out")
    assert (summary.num_resumed, summary.num_shards) == (done, 3)
    assert sum(len(sequences) for _, sequences, _ in fake.calls) == 5 - 2 * done
    assert sum(sent) == 5
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    fake.calls.clear()
    again = carry_out(embed(catalogue), fake, tmp_path / "out")
    assert (again.num_resumed, again.num_tokens, fake.calls) == (3, 0, [])
    assert again.num_scored == whole.num_scored


def test_changed_input_is_scored_anew_where_it_changed(
    embed: Any, catalogue: Path, fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carry_out(embed(catalogue), fake, out := tmp_path / "out")
    before = files_of(out)
    rows = [json.loads(line) for line in catalogue.read_text().splitlines()]
    rows[2]["description"] = "rust"
    write(catalogue, rows[:4])
    summary = carry_out(embed(catalogue), fake, out)
    assert (summary.num_shards, summary.num_resumed, summary.num_changed) == (2, 1, 1)
    assert "The input changed since the last run: from row 2 on" in capsys.readouterr().err
    after = files_of(out)
    assert len(after) == 2
    assert len(before.items() & after.items()) == 1
    assert len(list((out / "receipts").iterdir())) == 2
    assert [row["id"] for row in rows_of(out)] == ["img", "pdf", "git", "bare"]


def test_a_damaged_shard_and_a_damaged_receipt_are_scored_anew(
    embed: Any, catalogue: Path, fake: Any, tmp_path: Path
) -> None:
    carry_out(embed(catalogue), fake, out := tmp_path / "out")
    before = files_of(out)
    first, second, third = sorted((out / "shards").iterdir())
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    second.unlink()
    (out / "receipts" / f"{third.stem}.json").write_text('{"half')
    (out / "shards" / ".000000-left.parquet.abc").write_bytes(b"of a killed run")
    assert carry_out(embed(catalogue), fake, out).num_resumed == 0
    assert files_of(out) == before


def test_other_jobs_models_options_and_strangers_are_refused(
    embed: Any, bundles: Path, queries: Path, catalogue: Path, new_fake: Any, fake: Any, tmp_path: Path
) -> None:
    carry_out(embed(catalogue), fake, out := tmp_path / "out")
    before = files_of(out)
    rank = RankJob.of([queries], open_bundle(bundles), SearchSettings())
    with pytest.raises(OutputError, match=r"results of job embed, not rank.*--fresh"):
        carry_out(rank, fake, out)
    with pytest.raises(OutputError, match=r"options\.shard_rows 2, not 3"):
        carry_out(embed(catalogue), fake, out, shard_rows=3)
    with pytest.raises(OutputError, match=r"options\.engine server, not direct"):
        carry_out(embed(catalogue), fake, out, engine_name="direct")

    class OtherGraph(new_fake):  # type: ignore[misc]
        def served(self, role: Any) -> Any:
            return replace(super().served(role), graph_digest="9" * 64)

    with pytest.raises(OutputError, match=r"models\.embedder\.graph_digest"):
        carry_out(embed(catalogue), OtherGraph(), out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"from_the_future": 1}))
    with pytest.raises(OutputError, match="another version, or damaged"):
        carry_out(embed(catalogue), fake, out)
    assert files_of(out) == before
    assert carry_out(rank, fake, out, fresh=True).num_shards == 4
    assert not before.keys() & files_of(out).keys()
    for name, text in (("notes.txt", "mine"), ("manifest.json", '{"name": "an app"}'), ("manifest.json", "no json")):
        stranger = tmp_path / f"stranger-{name}-{len(text)}"
        stranger.mkdir()
        (stranger / name).write_text(text)
        with pytest.raises(OutputError, match="Name another folder"):
            carry_out(rank, fake, stranger, fresh=True)
        assert (stranger / name).read_text() == text
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="File exists"):
        carry_out(rank, fake, tmp_path / "file")


def test_a_second_run_on_one_output_is_refused(embed: Any, catalogue: Path, fake: Any, tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    with (out / ".lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process"):
            carry_out(embed(catalogue), fake, out)
    assert carry_out(embed(catalogue), fake, out).num_shards == 3


def test_a_disk_that_takes_no_more_stops_the_run_and_the_next_one_goes_on(
    embed: Any, catalogue: Path, fake: Any, tmp_path: Path
) -> None:
    """The kernel itself refuses to let a file grow, as a full disk does; half of it is not left behind."""
    job = embed(catalogue)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500, hard))
    try:
        with pytest.raises(OutputError, match="Free space"):
            carry_out(job, fake, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "out" / "shards").iterdir())
    assert carry_out(job, fake, tmp_path / "out").num_scored == 5


def test_scores_that_are_no_numbers_are_rejected_with_their_rows(
    bundles: Path, queries: Path, wire_server: Any, wire_settings: Any, tmp_path: Path
) -> None:
    """Over a real wire; the request of one row makes the reranker answer NaN."""
    from skillserve_client import Triton

    bundle = open_bundle(bundles)
    cut = bundle.corpus.embedder.query("chart")
    wire_server.poison = int(cut.ids[1])
    wire_server.parameters = {"skillserve_max_sequence_tokens": "48"}
    with Triton(wire_settings) as triton:
        summary = carry_out(RankJob.of([queries], bundle, SearchSettings()), triton, tmp_path / "out")
    assert summary.num_rejects == 2
    assert [reject["id"] for reject in rejects_of(tmp_path / "out")] == ["q4", "q5"]
    poison = rejects_of(tmp_path / "out")[0]
    assert poison["reason"].startswith("embedder: the model refused it: no finite number")
    assert (poison["where"], poison["row"]) == ("requests.jsonl:5", 4)


def test_a_server_that_fails_stops_the_run_with_its_shards_kept(
    bundles: Path, queries: Path, fake: Any, tmp_path: Path
) -> None:
    fake.failures["reranker"] = ServerError("fake", got="broken", wanted="x", fix="y")
    job = RankJob.of([queries], open_bundle(bundles), SearchSettings())
    with pytest.raises(ServerError, match="broken"):
        carry_out(job, fake, tmp_path / "out")
    assert not list((tmp_path / "out" / "shards").iterdir())


def test_the_command_tells_machines_and_its_exit_code_tells_of_rejects(
    world: IndexSettings,
    bundles: Path,
    queries: Path,
    wire_server: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = ["--url", wire_server.url, "--models", str(world.models)]
    catalogue = write(tmp_path / "c.jsonl", [{"id": str(i), "name": "git commit"} for i in range(5)])
    wire_server.parameters = {"skillserve_max_sequence_tokens": "48"}
    command = ["score", "embed", str(catalogue), "--out", str(tmp_path / "e"), "--shard-rows", "2", *server]
    assert main([*command, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["start", "shard", "shard", "shard", "done"]
    assert [event["rows"] for event in events[1:4]] == [2, 4, 5]
    assert events[0]["total_rows"] == 5
    assert (events[-1]["num_scored"], events[-1]["num_rejects"]) == (5, 0)
    assert main(command) == 0
    assert "5 of 5 rows scored" in capsys.readouterr().out
    rank = ["score", "rank", str(queries), "--out", str(tmp_path / "r"), "--bundles", str(bundles), *server]
    assert main(rank) == 6
    told = capsys.readouterr()
    assert "6 of 7 rows scored" in told.out
    assert "rejects.jsonl" in told.err
    pairs = write(tmp_path / "p.jsonl", [{"query": "git", "skill_id": "git"}])
    assert main(["score", "pairs", str(pairs), "--out", str(tmp_path / "p"), "--bundles", str(bundles), *server]) == 0
    assert main([*command[: -len(server)], "--out", str(tmp_path / "p"), *server, "--json"]) == 4
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"] == "OutputError"


def test_nothing_is_touched_where_no_run_could_read_the_input(
    embed: Any, fake: Any, tmp_path: Path, catalogue: Path
) -> None:
    with pytest.raises(CatalogueError):
        carry_out(embed(catalogue, tmp_path / "nowhere"), fake, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    empty = write(tmp_path / "empty.jsonl", [])
    assert carry_out(embed(empty), fake, tmp_path / "out").num_shards == 0
    assert read_skills(catalogue)
    with pytest.raises(CatalogueError):
        read_queries(empty)


def test_without_ray_its_extra_is_named_and_nothing_is_begun(
    world: IndexSettings,
    catalogue: Path,
    wire_server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ["--engine", "ray", "--worker-engine", "server", "--url", wire_server.url, "--models", str(world.models)]
    assert main(["score", "embed", str(catalogue), "--out", str(tmp_path / "out"), *options]) == 3
    assert "pip install 'skillserve[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
