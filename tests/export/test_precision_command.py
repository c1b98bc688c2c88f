"""`skillserve export --precision` as a command: what is written, what is refused, and what the errors say."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from skillserve.card import ModelCard, read_card
from skillserve.cli import main
from skillserve.tensors import Role
from skillserve_export import repository
from skillserve_export.cores import AttentionCore
from skillserve_export.graph import export_packed
from skillserve_export.precision import lower


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object]]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


JUDGED = ["finite scores", "top-1 agreement", "top-10 overlap", "NDCG@10"]


@pytest.mark.parametrize("precision", ["int8", "fp16", "w4"])
def test_a_precision_is_judged_by_rankings_unasked_and_stamped(
    precision: str, tiny_embedder: Path, sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    asked = ["--repository", models, "--data", sample_data, "--gate-requests", 20]
    limits = {
        "int8": {"min_top1": 0.8, "min_overlap": 0.9, "max_ndcg_loss": 10},
        "w4": {"min_top1": 0.1, "min_overlap": 0.3, "max_ndcg_loss": 60},  # random weights have nothing to spare
    }
    loose = {"export": {"gate": limits}}
    weights = _with_limits(tiny_embedder, tmp_path / "weights", loose)
    code, told = _run(capsys, "export", weights, *asked, "--precision", precision)
    assert code == 0, told
    names = ["interface", "shape and finite", "values", "batch invariance", "isolation"]
    assert [check["name"] for check in told["checks"]] == names + JUDGED
    folder = models / "skill_embedder"
    assert json.loads((folder / "export.json").read_text())["precision"] == precision
    config = (folder / "config.pbtxt").read_text()
    assert precision in config[config.index("skillserve_precision") :].splitlines()[2]
    assert precision in str(told["gate"]["report"])

    code, told = _run(capsys, "verify", weights, *asked)
    assert code == 0, told
    assert [check["name"] for check in told["checks"]] == names + JUDGED


def _with_limits(weights: Path, folder: Path, section: dict[str, object]) -> Path:
    """The same weights under other limits, which are no part of the digest."""
    folder.mkdir()
    for file in weights.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    card = json.loads((folder / "card.json").read_text()) | section
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_late_interaction_is_exported_and_verified_like_any_reranker(
    precision: str,
    tiny_embedder: Path,
    make_weights: Callable[..., Path],
    sample_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Behind the rank gate, on the candidates of the repository's embedder; as both models that it is served as."""
    asked = ["--repository", tmp_path / "models", "--data", sample_data]
    assert _run(capsys, "export", tiny_embedder, *asked)[0] == 0
    loose = {"export": {"gate": {"int8": {"min_top1": 0.5, "min_overlap": 0.9, "max_ndcg_loss": 10}}}}
    late = make_weights("late-bert", "reranker", None, max_tokens=60)
    weights = _with_limits(late, tmp_path / "weights", loose)
    asked += ["--gate", "--gate-requests", 8, "--gate-depth", 12]
    for command in (["export", weights, *asked, "--precision", precision], ["verify", weights, *asked]):
        code, told = _run(capsys, *command)
        assert code == 0, told
        for name in ("skill_reranker", "skill_token_embedder"):
            findings = told if name == "skill_reranker" else told[name]
            assert findings["folder"] == str(tmp_path / "models" / name)
            assert [check["name"] for check in findings["checks"]][-4:] == JUDGED
            assert all(check["passed"] for check in findings["checks"])
            assert name in findings["gate"]["report"]
    config = (tmp_path / "models" / "skill_reranker" / "config.pbtxt").read_text()
    assert read_card(weights).digest in config
    assert "input_ids" in config
    assert "attention_mask" not in config


def test_weights_that_are_cut_too_coarsely_are_not_written(
    tiny_embedder: Path,
    sample_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three bits instead of eight: the values may still pass, the rankings do not."""
    monkeypatch.setattr(repository, "lower", partial(lower, bits=3))
    monkeypatch.setitem(repository.check_parity.__globals__["ROUNDED_TOLERANCE"], "int8", 1.0)
    models, report = tmp_path / "models", tmp_path / "report"
    asked = ["--repository", models, "--data", sample_data, "--report", report, "--precision", "int8"]
    code, told = _run(capsys, "export", tiny_embedder, *asked)
    assert code == 4
    assert "top-10 overlap" in told["got"]
    assert str(report) in told["got"]
    assert "Choose another precision" in told["fix"]
    assert not models.exists()
    assert not json.loads((report / "gate.json").read_text())["passed"]


def test_what_overflows_in_fp16_is_named_by_its_layer(
    tiny_embedder: Path,
    sample_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second layer's values are made a million times larger, and smaller again behind them: exact in float32."""

    def stretched(module: nn.Module, card: ModelCard, role: Role, core: AttentionCore, output: Path) -> None:
        export_packed(module, card, role, core, output)
        model = onnx.load(output)
        stretch = {"self.value.weight": 1e6, "output.dense.weight": 1e-6}  # biases are zero
        for name, factor in stretch.items():
            tail = f"encoder.layer.1.attention.{name}"
            [tensor] = [each for each in model.graph.initializer if each.name.endswith(tail)]
            values = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, output)

    monkeypatch.setattr(repository, "export_packed", stretched)
    asked = ["--repository", tmp_path / "models", "--data", sample_data]
    code, told = _run(capsys, "export", tiny_embedder, *asked, "--precision", "fp16")
    assert code == 4
    assert "not finite" in told["got"]
    assert "`/encoder/value_1/Gemm`" in told["got"]
    assert "layer.1.attention.self.value.weight" in told["got"]
    assert "--precision" in told["fix"]
    assert not (tmp_path / "models").exists()
    code, told = _run(capsys, "export", tiny_embedder, *asked)
    assert code == 0, "float32 holds it"


def test_a_precision_that_the_device_lacks_is_refused_before_any_work(
    tiny_embedder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = _run(capsys, "export", tiny_embedder, "--repository", tmp_path / "models", "--precision", "bf16")
    assert code == 2
    assert told["subject"] == "precision `bf16`"
    assert "on cpu" in str(told["got"])
    assert "fp32, fp16, int8, w8, w4" in str(told["wanted"])
    assert "--device cuda" in str(told["fix"])
    assert not (tmp_path / "models").exists()


def test_a_device_that_is_not_there_is_named(
    tiny_embedder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = _run(capsys, "export", tiny_embedder, "--repository", tmp_path / "models", "--device", "cuda")
    assert code == 2
    assert told["subject"] == "device `cuda`"
    assert "onnxruntime-gpu" in str(told["fix"])


def test_an_unknown_precision_is_refused(tiny_embedder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tiny_embedder), "--precision", "int5"]) == 2
    told = capsys.readouterr().err
    assert "int5" in told
    assert "int8" in told


@pytest.mark.parametrize("weights", ["tiny_embedder", "tiny_reranker"])
def test_without_judged_requests_no_precision_is_judged(
    weights: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Outside of a clone there is no sample to fall back on; it is told before anything is exported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(repository, "export_packed", _never)
    code, told = _run(capsys, "export", request.getfixturevalue(weights), "--precision", "int8")
    assert code == 2
    assert "Run it again with --data FOLDER" in str(told["fix"])
    assert not (tmp_path / "models").exists()


def test_a_reranker_without_candidates_and_data_that_is_not_there_are_told_before_any_work(
    tiny_reranker: Path,
    sample_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repository, "export_packed", _never)
    asked = [tiny_reranker, "--repository", tmp_path / "models"]
    for more in (["--precision", "int8"], ["--gate"]):
        code, told = _run(capsys, "export", *asked, *more, "--data", sample_data)
        assert code == 2
        assert "no embedder in" in str(told["got"])
        assert f"skillserve export EMBEDDER --repository {tmp_path / 'models'}" in str(told["fix"])
        assert "--run FILE" in str(told["fix"])
    code, told = _run(capsys, "export", *asked, "--data", tmp_path / "nowhere")
    assert code == 2
    assert told["subject"] == f"data folder `{tmp_path / 'nowhere'}`"


def _never(*_: object) -> None:
    pytest.fail("a graph was exported")


def test_inside_a_clone_the_sample_is_asked(
    tiny_embedder: Path,
    sample_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(sample_data.parent.parent)
    asked = ["--repository", tmp_path / "models", "--precision", "fp16", "--gate-requests", 6]
    code, told = _run(capsys, "export", tiny_embedder, *asked)
    assert code == 0
    assert told["gate"]["requests"]["source"] == "examples/sample, test"
