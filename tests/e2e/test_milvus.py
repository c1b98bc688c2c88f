"""The real commands against the real server, with the vectors in Milvus Lite: the answers are those of FAISS."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skillserve.cli import main
from skillserve.settings import IndexSettings
from skillserve_client.milvus import MilvusStore

pytestmark = pytest.mark.e2e


def test_milvus_answers_what_faiss_answers(
    server: Any,
    catalogue: Path,
    bundles: Path,
    skillserve: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """Each command is a process of its own, so that what was written must be found again by others.

    Scores are compared loosely, since two bundles were embedded in batches of their own.
    """
    milvus = ("--bundles", str(tmp_path / "bundles"), "--url", server.url, "--uri", str(tmp_path / "lite.db"), "--json")
    models = ("--models", str(server.repository), "--kind", "milvus")
    built = json.loads(skillserve("index", str(catalogue), *models, *milvus).stdout)
    assert built["collection"]["alias"] == "skillserve"
    request = "find a slow sql query"
    answers = [
        json.loads(skillserve("search", request, "--top-k", "8", *where).stdout)
        for where in (("--bundles", str(bundles), "--url", server.url, "--json"), milvus)
    ]
    faiss, found = ([(hit["skill_id"], hit["similarity"]) for hit in answer["hits"]] for answer in answers)
    assert [skill for skill, _ in found] == [skill for skill, _ in faiss]
    assert [similarity for _, similarity in found] == pytest.approx([similarity for _, similarity in faiss], abs=1e-5)
    assert json.loads(skillserve("index", str(catalogue), *models, *milvus).stdout)["status"] == "current"


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[str]:
    """Address of Milvus Lite as a server, which several processes reach."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    running, database, port = start_server_in_thread(str(tmp_path / "lite.db"))
    yield f"http://127.0.0.1:{port}"
    running.stop(grace=2).wait()
    database.close()


def test_latency_is_measured_with_vectors_in_milvus_and_nothing_stays_there(
    server: Any, sample_data: Path, milvus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The alias that a live index would have is neither needed nor moved."""
    what = ["--repository", server.repository, "--data", sample_data, "--url", server.url, "--levels", "search"]
    small = ["--length", "smoke", "--scenarios", "index,single", "--num-workers", 1]
    where = ["--kind", "milvus", "--uri", milvus, "--lexical-weight", 0.2]
    report = tmp_path / "latency.md"
    code = main(["bench", "latency", *map(str, [*what, *small, *where]), "--out", str(report), "--json"])
    found = json.loads(capsys.readouterr().out)["figures"]
    assert [each for each in found["objections"] if "invalid: requests started" not in each] == []
    assert code == (1 if found["objections"] else 0)
    assert found["index"]["num_skills"] == 108
    assert found["levels"]["search"]["measurements"]["single"]["num_answered"] > 0
    assert "vectors in milvus, lexical weight 0.2" in report.read_text()
    store = MilvusStore.connect(IndexSettings(kind="milvus", uri=milvus))
    try:
        assert store.connection.call("list_collections") == []
        assert not store.has("skillserve")
    finally:
        store.close()


def test_a_file_that_one_process_holds_is_refused_before_anything_is_measured(
    server: Any, sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = ["--repository", server.repository, "--data", sample_data, "--url", server.url]
    command = ["bench", "latency", *map(str, what), "--kind", "milvus", "--uri", str(tmp_path / "lite.db"), "--json"]
    assert main(command) == 2
    assert "which one process holds" in json.loads(capsys.readouterr().out)["got"]
