"""The commands: argument errors with their exit codes, and one small real run of each against a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skillserve.cli import main
from skillserve.errors import RepositoryError
from skillserve.settings import ExportSettings
from skillserve_bench.peers.padded import joining_nothing
from skillserve_bench.score.ways import DIRECT, ONE_BY_ONE, RAY, SERVED, TRANSFORMERS
from skillserve_client.configuration import read_configuration
from skillserve_export import export_model


@pytest.fixture(scope="module")
def padded(stock_embedder: Path, stock_reranker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in the conventional layout."""
    folder = tmp_path_factory.mktemp("padded")
    for weights in (stock_embedder, stock_reranker):
        export_model(weights, ExportSettings(repository=folder), layout="padded")
    return folder


@pytest.fixture(scope="module")
def both(stock_embedder: Path, stock_reranker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with both tiny models, packed."""
    folder = tmp_path_factory.mktemp("both")
    for weights in (stock_embedder, stock_reranker):
        export_model(weights, ExportSettings(repository=folder))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    """Run a command with --json; returns its exit code and the object on stdout."""
    code = main(["bench", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_server_that_is_not_there_is_exit_5(capsys: pytest.CaptureFixture[str], packed: Path) -> None:
    code, error = run(capsys, "overhead", "--repository", packed, "--url", "127.0.0.1:1")
    assert code == 5
    assert error["error"] == "ServerUnreachable"


def test_a_folder_without_a_test_split_is_exit_2_before_a_server_is_started(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nowhere = tmp_path / "no-repository"
    code, error = run(capsys, "quality", "--data", tmp_path, "--weights", nowhere, "--repository", nowhere)
    assert code == 2
    assert error["error"] == "CatalogueError"
    assert "skills/test" in error["wanted"]


def test_what_keeps_a_server_from_starting_is_told_as_serve_tells_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, error = run(capsys, "overhead", "--repository", tmp_path)
    assert code == 4
    assert error["error"] == "RepositoryError"


def test_a_report_that_cannot_be_written_is_exit_2_before_a_server_is_started(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, error = run(capsys, "overhead", "--repository", tmp_path / "no-repository", "--out", tmp_path)
    assert code == 2
    assert "--out" in str(error)


def test_a_setting_out_of_range_is_exit_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, error = run(capsys, "batching", "--packed", tmp_path, "--padded", tmp_path, "--rounds", 0)
    assert code == 2
    assert error["subject"] == "setting --rounds"


@pytest.mark.e2e
def test_batching_is_measured_and_every_answer_checked(
    capsys: pytest.CaptureFixture[str], packed: Path, padded: Path, sample_data: Path, tmp_path: Path
) -> None:
    """Ratios are not asserted: a model of two thousand parameters says nothing about padding."""
    report = tmp_path / "batching.md"
    small = ["--rounds", 2, "--num-clients", 8, "--num-requests", 48]
    code, found = run(
        capsys, "batching", "--packed", packed, "--padded", padded, "--data", sample_data, *small, "--out", report
    )
    assert code == 0, found
    assert set(found["figures"]) == {"packed", "padded", "padded to 48"}  # the tiny model reads no more
    for layout in found["figures"].values():
        assert layout["largest_difference"] <= 1e-5
        assert layout["requests_per_s"]["num"] == 2
        assert layout["mean_batch"]["least"] >= 1.0
    assert "| packed |" in report.read_text()
    assert str(tmp_path) not in report.read_text()


def test_a_padded_repository_is_copied_without_what_joins_requests_and_a_packed_one_refused(
    packed: Path, padded: Path, tmp_path: Path
) -> None:
    joining_nothing(padded, tmp_path / "copy")
    before, after = (read_configuration(each / "skill_embedder") for each in (padded, tmp_path / "copy"))
    assert before.HasField("dynamic_batching")
    assert not after.HasField("dynamic_batching")
    before.ClearField("dynamic_batching")
    assert after == before
    with pytest.raises(RepositoryError, match="layout `packed`"):
        joining_nothing(packed, tmp_path / "other")
    with pytest.raises(RepositoryError, match="no models in it"):
        joining_nothing(tmp_path / "nowhere", tmp_path / "third")


@pytest.mark.e2e
def test_peers_are_measured_in_the_same_run_and_who_is_absent_is_named(
    capsys: pytest.CaptureFixture[str],
    both: Path,
    padded: Path,
    stock_embedder: Path,
    stock_reranker: Path,
    sample_data: Path,
    tmp_path: Path,
) -> None:
    page = tmp_path / "beside.html"
    code, found = run(
        capsys, "latency", "--repository", both, "--data", sample_data, "--length", "smoke", "--levels", "search",
        "--scenarios", "single", "--peer", "infinity", "--peer", "triton-padded", "--peer-embedder", stock_embedder,
        "--peer-reranker", stock_reranker, "--peer-padded", padded, "--peers-folder", tmp_path, "--out", page,
    )  # fmt: skip
    assert found["figures"]["objections"] == [] or code == 1  # a busy machine may send late, and says so
    peers = found["figures"]["peers"]
    assert set(peers["contenders"]) == {"search", "triton-padded"}
    assert "no environment" in peers["absent"]["infinity"]
    ours, padded_one = (peers["contenders"][name] for name in ("search", "triton-padded"))
    assert ours["quality"]["num_answered"] == padded_one["quality"]["num_answered"] == 20
    assert padded_one["quality"]["ndcg"] == pytest.approx(ours["quality"]["ndcg"])  # the same weights and bundle
    assert padded_one["p50_ratio"]["value"] > 0
    assert "infinity did NOT take part" in page.read_text()


@pytest.mark.e2e
def test_overhead_compares_batches_of_the_same_size(capsys: pytest.CaptureFixture[str], packed: Path) -> None:
    small = ["--rounds", 2, "--num-clients", 8, "--num-requests", 48, "--num-pairs", 5]
    code, found = run(capsys, "overhead", "--repository", packed, *small)
    assert code == 0, found
    assert set(found["figures"]["lone"]) == {"8", "16", "32", "48"}
    sizes = [side["mean_batch"]["median"] for side in found["figures"]["load"].values()]
    assert sizes[0] == pytest.approx(sizes[1])
    assert found["figures"]["largest_difference"] <= 1e-5


@pytest.mark.e2e
def test_batch_scoring_is_measured_and_killed(
    capsys: pytest.CaptureFixture[str], both: Path, stock_embedder: Path, sample_data: Path
) -> None:
    catalogue = sample_data / "skills" / "test.jsonl"
    small = ["--rounds", 1, "--kills", 3, "--data", sample_data, "--weights", stock_embedder]
    code, found = run(capsys, "score", "--repository", both, "--catalogue", catalogue, *small)
    assert code == 0, found
    figures = found["figures"]
    ways = {DIRECT, SERVED, ONE_BY_ONE, TRANSFORMERS, RAY}
    assert set(figures["ratio"]) | set(figures["not_measured"]) == ways
    assert set(figures["not_measured"]) <= {RAY}  # an extra that this machine may have
    assert figures["largest_difference"] <= 1e-5
    assert figures["least_cosine"] > 0.9999
    assert set(figures["kills"]) == {"embed", "rank", "pairs"}
    assert sum(len(ordeal["kills"]) for ordeal in figures["kills"].values()) > 0
    for ordeal in figures["kills"].values():
        assert ordeal["identical"]
        assert ordeal["each_row_once"]
        # On a busy machine the little work may end before the kill.
        assert len(ordeal["kills"]) <= 1
        assert all((kill["repeated"], kill["missing"]) == (0, 0) for kill in ordeal["kills"])


@pytest.mark.e2e
def test_what_is_served_ranks_as_sentence_transformers_does(
    capsys: pytest.CaptureFixture[str],
    packed: Path,
    stock_embedder: Path,
    sample_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that the environment tunes says so in the report, for it is not the one that was exported."""
    monkeypatch.setenv("SKILLSERVE_SERVE_NUM_THREADS", "1")
    code, found = run(capsys, "quality", "--data", sample_data, "--weights", stock_embedder, "--repository", packed)
    assert code == 0, found
    assert found["server"].endswith("(embedded, set by a configuration file or the environment: num_threads 1)")
    assert found["figures"]["top_10_overlap"] > 0.99
    assert found["figures"]["num_requests"] > 0
