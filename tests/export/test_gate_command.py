"""`skillserve export --gate` and `skillserve verify --gate` as commands: exit codes, what is written, what is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import nn

from skillserve.card import ModelCard, read_card
from skillserve.cli import main
from skillserve.tensors import Role
from skillserve_export import repository
from skillserve_export.cores import AttentionCore
from skillserve_export.graph import export_packed


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object]]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def _rounded(module: nn.Module, card: ModelCard, role: Role, core: AttentionCore, output: Path) -> None:
    """As a precision whose values differ on purpose: only its rankings tell whether it is good enough."""
    export_packed(module, card, role, core, output)
    model = onnx.load(output)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            step = np.abs(values).max()  # two bits
            moved = (np.round(values / step) * step).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
    onnx.save(model, output)


def test_export_and_verify_judge_rankings_when_asked(
    tiny_embedder: Path, sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--repository", tmp_path / "models", "--data", sample_data, "--gate", "--gate-requests", 6]
    names = ["interface", "shape and finite", "values", "batch invariance", "isolation", "rankings"]
    names += ["finite scores", "top-1 agreement", "top-10 overlap", "NDCG@10"]
    for command, folder in (("export", "first"), ("verify", "second")):
        code, told = _run(capsys, command, tiny_embedder, *asked, "--report", tmp_path / folder)
        assert code == 0
        assert [check["name"] for check in told["checks"]] == names
        assert told["gate"]["passed"]
        assert told["gate"]["report"] == str(tmp_path / folder)
        kept = json.loads((tmp_path / folder / "gate.json").read_text())
        assert kept["figures"] == told["gate"]["figures"]
        assert kept["requests"]["num_requests"] == 6


def test_a_candidate_that_ranks_otherwise_is_not_written_and_its_report_is(
    tiny_embedder: Path,
    sample_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repository, "export_packed", _rounded)
    monkeypatch.setattr(repository, "check_parity", lambda *_, **__: [])
    models, report = tmp_path / "models", tmp_path / "report"
    code, told = _run(
        capsys, "export", tiny_embedder, "--repository", models, "--data", sample_data, "--gate", "--report", report
    )
    assert code == 4
    assert told["error"] == "ParityError"
    assert "top-1 agreement" in told["got"]
    assert str(report) in told["got"]
    assert "Nothing was written" in told["fix"]
    assert not (models / "skill_embedder").exists()
    kept = json.loads((report / "gate.json").read_text())
    assert not kept["passed"]
    assert [check["name"] for check in kept["checks"] if not check["passed"]]
    assert kept["model"]["digest"] == read_card(tiny_embedder).digest
    assert "FAILED" in (report / "gate.md").read_text()


def test_verify_does_not_compare_rankings_of_a_graph_with_other_values(
    tiny_embedder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parity comes first, and its failure is the one that is told, with the checks in the same document."""
    asked = [tiny_embedder, "--repository", tmp_path / "models"]
    assert main(["export", *map(str, asked)]) == 0
    capsys.readouterr()
    monkeypatch.setattr("skillserve_export.parity.VALUE_TOLERANCE", 0.0)
    code, told = _run(capsys, "verify", *asked, "--gate", "--report", tmp_path / "report")
    assert code == told["exit_code"] == 4
    assert told["error"] == "ParityError"
    assert [check["name"] for check in told["checks"] if not check["passed"]] == ["values"]
    assert told["got"].startswith("values: ")
    assert told["folder"] == str(tmp_path / "models" / "skill_embedder")
    assert "gate" not in told
    assert not (tmp_path / "report" / "gate.json").exists()


def test_verify_tells_a_failed_gate_and_its_figures_in_one_document(
    tiny_embedder: Path,
    sample_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [tiny_embedder, "--repository", tmp_path / "models", "--data", sample_data]
    monkeypatch.setattr(repository, "export_packed", _rounded)
    monkeypatch.setattr(repository, "check_parity", lambda *_, **__: [])
    assert main(["export", *map(str, asked)]) == 0
    capsys.readouterr()
    code, told = _run(capsys, "verify", *asked, "--gate", "--gate-requests", 6, "--report", tmp_path / "report")
    assert code == told["exit_code"] == 4
    assert told["error"] == "ParityError"
    failed = [check["name"] for check in told["checks"] if not check["passed"]]
    assert failed
    assert all(name in told["got"] for name in failed)
    assert not told["gate"]["passed"]
    assert told["gate"]["figures"] == json.loads((tmp_path / "report" / "gate.json").read_text())["figures"]


@pytest.mark.parametrize("option", [["--url", "127.0.0.1:1"], ["--run", "some.run"], ["--report", "reports"]])
def test_options_of_the_gate_without_it_are_refused(
    option: list[str], tiny_embedder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = _run(capsys, "verify", tiny_embedder, *option)
    assert code == 2
    assert "--gate" in str(told["fix"])


def test_a_server_that_is_not_there_is_found_before_anything_is_exported(
    tiny_embedder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKILLSERVE_CLIENT_TIMEOUT_S", "1")
    asked = ["--gate", "--url", "127.0.0.1:1", "--report", tmp_path]
    code, told = _run(capsys, "verify", tiny_embedder, *asked)
    assert code == 5
    assert "127.0.0.1:1" in str(told["subject"])
    assert not list(tmp_path.iterdir())
