"""The rank gate against a running server: what it answers over gRPC, beside its weights in process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from skillserve.card import read_card
from skillserve.graph_file import check_graph

pytestmark = pytest.mark.e2e

ASKED = ("--gate", "--gate-requests", "8", "--gate-depth", "6", "--json")


@pytest.mark.parametrize("weights", ["tiny_embedder", "tiny_reranker"])
def test_a_served_model_ranks_as_its_weights_do(
    weights: str,
    server: Any,
    in_process: Callable[..., Any],
    sample_data: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """And the report names the server, its version and the digests of what it serves."""
    folder: Path = request.getfixturevalue(weights)
    in_process(
        "verify", str(folder), *ASKED, "--url", server.url, "--data", str(sample_data),
        "--repository", str(server.repository), "--report", str(tmp_path),
    )  # fmt: skip
    report = json.loads((tmp_path / "gate.json").read_text())
    assert report["passed"]
    assert [check["name"] for check in report["checks"]][1:] == ["top-1 agreement", "top-10 overlap", "NDCG@10"]
    model = server.repository / weights.replace("tiny", "skill")
    assert report["candidate"]["server"] == f"triton {server.ready['server']['version']}"
    assert report["candidate"]["address"] == server.url
    assert report["candidate"]["digest"] == read_card(folder).digest
    assert report["candidate"]["graph_digest"] == check_graph(model / "1" / "model.onnx").digest()
    assert report["candidate"]["server"] in (tmp_path / "gate.md").read_text()


def test_a_server_of_another_model_is_refused(
    server: Any, in_process: Callable[..., Any], tiny_cls_embedder: Path, tmp_path: Path
) -> None:
    """In the four parts of an error, and before anything is compared."""
    done = in_process(
        "verify", str(tiny_cls_embedder), *ASKED, "--url", server.url, "--report", str(tmp_path), check=False
    )
    assert done.returncode == 4
    error = json.loads(done.stdout)
    assert error["error"] == "RepositoryError"
    assert server.url in error["subject"]
    assert error["got"].startswith(f"embedder {read_card(server.repository / 'skill_embedder').short_digest}")
    assert read_card(tiny_cls_embedder).short_digest in error["wanted"]
    assert "skillserve export" in error["fix"]
    assert not list(tmp_path.iterdir())


def test_a_server_that_computes_something_else_under_the_same_digest_fails(
    serve: Callable[..., Any],
    repository: Path,
    in_process: Callable[..., Any],
    tiny_embedder: Path,
    sample_data: Path,
    tmp_path: Path,
) -> None:
    """As a faulty runtime or driver would; the probe is made to look away, since it would stop this one."""
    models, report = tmp_path / "models", tmp_path / "report"
    shutil.copytree(repository / "skill_embedder", models / "skill_embedder")
    folder = models / "skill_embedder"
    graph = folder / "1" / "model.onnx"
    before = check_graph(graph).digest()
    model = onnx.load(graph)
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    values = onnx.numpy_helper.to_array(tensor)
    moved = values + np.random.default_rng(0).normal(size=values.shape) * values.std()
    tensor.CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    onnx.save(model, graph)
    (folder / "export.json").unlink()
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace(before, check_graph(graph).digest()))
    probe = json.loads((folder / "probe.json").read_text())
    (folder / "probe.json").write_text(json.dumps(probe | {"tolerance": 1e9}))
    with serve(models) as other:
        done = in_process(
            "verify", str(tiny_embedder), *ASKED, "--url", other.url, "--data", str(sample_data),
            "--report", str(report), check=False,
        )  # fmt: skip
    assert done.returncode == 4, done.stderr
    error = json.loads(done.stdout)
    assert error["error"] == "ParityError"
    assert not error["gate"]["passed"]
    assert "top-1 agreement" in error["got"]
    assert str(report) in error["got"]
    assert not json.loads((report / "gate.json").read_text())["passed"]
