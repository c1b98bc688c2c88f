"""A reranker by late interaction as a reader of single texts: rows of tokens, gated as the scores that they make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from google.protobuf import text_format
from torch import nn
from tritonclient.grpc.model_config_pb2 import ModelConfig

from skillserve.card import ModelCard, read_card
from skillserve.errors import ParityError, RepositoryError
from skillserve.graph_file import GraphFile
from skillserve.probe import read_probe
from skillserve.settings import ExportSettings
from skillserve.tensors import Ids, Role
from skillserve_export import repository
from skillserve_export.cores import AttentionCore
from skillserve_export.graph import export_packed
from skillserve_export.opened import check_servable
from skillserve_export.parity import PackedGraph
from skillserve_export.repository import export_model, verify_model
from skillserve_export.roles import roles_of, stale_folder

SAME_ROW = 5e-6
"""Unit states of two layers in float32, times weights of up to 6, beside float64."""
NAME = "skill_token_embedder"

Array = npt.NDArray[Any]


class Served(NamedTuple):
    """Random weights, and the repository that they were exported into."""

    weights: Path
    card: ModelCard
    settings: ExportSettings
    texts: list[Ids]

    @property
    def folder(self) -> Path:
        """Of the token embedder."""
        return self.settings.repository / NAME


@pytest.fixture(scope="module")
def weights(make_weights: Callable[..., Path]) -> Path:
    return make_weights("late-bert", "reranker", None, max_tokens=60, seed=11)


@pytest.fixture(scope="module", params=["loop", "gather"])
def served(request: pytest.FixtureRequest, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """One model folder a core, and texts of one token to as many as the card allows."""
    settings = ExportSettings(repository=tmp_path_factory.mktemp("tokens"), attention_core=request.param)
    [done] = export_model(weights, settings).also
    assert done.folder == settings.repository / NAME
    assert all(check.passed for check in done.checks)
    card = read_card(weights)
    rng = np.random.default_rng(6)
    texts = [rng.integers(0, card.vocab_size, num).astype(np.int32) for num in (1, 7, 23, 60)]
    return Served(weights, card, settings, texts)


def test_the_folder_says_what_it_gives_and_what_scores_are_made_with(served: Served) -> None:
    """The scatter is by tokens; turns are those of CPUs."""
    names = {path.name for path in served.folder.iterdir()}
    assert names == {"config.pbtxt", "card.json", "tokenizer.json", "probe.json", "export.json", "warmup", "1"}
    config = text_format.Parse((served.folder / "config.pbtxt").read_text(), ModelConfig())
    assert (config.name, config.output[0].name, list(config.output[0].dims)) == (NAME, "token_embedding", [-1, 32])
    assert list(config.batch_output[0].source_input) == ["input_ids"]
    found = {key: value.string_value for key, value in config.parameters.items()}
    assert (found["skillserve_late_window"], found["skillserve_late_scale"]) == ("6", "10.0")
    assert ("skillserve_execution_tokens" in found) == (served.settings.attention_core == "loop")
    assert read_card(served.folder) == served.card
    assert json.loads((served.folder / "export.json").read_text())["attention_core"] == served.settings.attention_core


def test_the_probe_has_a_row_a_token_and_is_answered_by_the_graph(served: Served) -> None:
    probe = read_probe(served.folder)
    assert (probe.model, probe.output) == (NAME, "token_embedding")
    assert len(probe.expected) == len(probe.input_ids) == sum(probe.seq_lens)
    ends = [len(probe.input_ids)], [len(probe.seq_lens)]
    answer = PackedGraph(served.folder / "1" / "model.onnx").run_raw(probe.input_ids, probe.seq_lens, *ends)
    assert probe.differs_by(answer[None]) < 1e-5
    assert probe.differs_by(answer[::-1]) > probe.tolerance


def test_rows_are_states_of_transformers_as_long_as_their_tokens_weigh(
    served: Served, late_states: Callable[[Path, Ids], Any], late_weights: Callable[[Path], list[float]]
) -> None:
    graph, lens = PackedGraph(served.folder / "1" / "model.onnx"), [len(text) for text in served.texts]
    weights = np.array(late_weights(served.weights))
    wanted = [late_states(served.weights, text).numpy() * weights[text][:, None] for text in served.texts]
    # One request of all texts, and each as a request of its own.
    for ends in (([sum(lens)], [len(lens)]), (np.cumsum(lens), np.arange(len(lens)) + 1)):
        found = graph.run_raw(np.concatenate(served.texts), lens, *ends)
        np.testing.assert_allclose(found, np.concatenate(wanted), rtol=0, atol=SAME_ROW)


@pytest.mark.parametrize(
    ("ids", "lens"),
    [([7] * 5, [6]), ([7] * 5, [5, 0]), ([7, -1, 7], [3]), ([7, 10_000, 7], [1, 2]), ([7] * 61, [61])],
    ids=["sum too high", "no token", "id below 0", "id above the vocabulary", "too long"],
)
def test_all_tokens_of_a_malformed_request_are_nan_and_its_neighbours_unmoved(
    served: Served, ids: list[int], lens: list[int]
) -> None:
    graph, (before, behind) = PackedGraph(served.folder / "1" / "model.onnx"), served.texts[1:3]
    rows = graph.run_raw(
        np.concatenate([before, ids, behind]),
        [len(before), *lens, len(behind)],
        np.cumsum([len(before), len(ids), len(behind)]),
        np.cumsum([1, len(lens), 1]),
    )
    first, middle, last = np.split(rows, [len(before), len(before) + len(ids)])
    assert np.isnan(middle).all()
    for found, text in ((first, before), (last, behind)):
        alone = graph.run_raw(text, [len(text)], [len(text)], [1])
        np.testing.assert_allclose(found, alone, rtol=0, atol=SAME_ROW)
    assert np.isnan(graph.run_raw(ids, lens, [len(ids)], [len(lens)])).all()


@pytest.mark.parametrize("moved", ["the table of words", "what tokens weigh"])
def test_a_graph_of_other_weights_is_not_written(
    moved: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are judged by the scores that they make, to which lengths of rows matter as well as directions."""
    vocab_size = read_card(weights).vocab_size
    shape = (vocab_size, 32) if moved == "the table of words" else (vocab_size,)

    def perturbed(module: nn.Module, card: ModelCard, role: Role, core: AttentionCore, output: Path) -> None:
        export_packed(module, card, role, core, output)
        if role == "reranker":
            return
        model = onnx.load(output)
        [tensor] = [each for each in model.graph.initializer if tuple(each.dims) == shape]
        values = onnx.numpy_helper.to_array(tensor)
        noise = np.random.default_rng(0).uniform(0.9, 1.1, values.shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array((values * noise).astype(np.float32), tensor.name))
        onnx.save(model, output)

    monkeypatch.setattr(repository, "export_packed", perturbed)
    with pytest.raises(ParityError, match="token graph of `tiny-late-bert-reranker`: got values"):
        export_model(weights, ExportSettings(repository=tmp_path / "models"))
    # Nor the reranker, which passed: the two belong together.
    assert not (tmp_path / "models").exists()


def test_verify_passes_what_was_written_and_refuses_what_changed(served: Served, tmp_path: Path) -> None:
    [verified] = verify_model(served.weights, served.settings).also
    assert verified.folder == served.folder
    assert {check.name for check in verified.checks} >= {"values", "isolation", "rankings"}
    assert all(check.passed for check in verified.checks)
    shutil.copytree(served.settings.repository, tmp_path, dirs_exist_ok=True)
    with (tmp_path / NAME / "config.pbtxt").open("a") as config:
        config.write("\n")
    with pytest.raises(RepositoryError, match=r"config\.pbtxt"):
        verify_model(served.weights, ExportSettings(repository=tmp_path))


def test_only_late_interaction_in_the_packed_layout_is_served_twice(
    weights: Path, tiny_embedder: Path, tiny_reranker: Path
) -> None:
    late = read_card(weights)
    assert roles_of(late, "packed") == ("reranker", "token_embedder")
    assert roles_of(late, "padded") == ("reranker",)
    assert roles_of(read_card(tiny_embedder), "packed") == ("embedder",)
    assert roles_of(read_card(tiny_reranker), "packed") == ("reranker",)


def test_a_token_embedder_of_other_weights_is_a_leftover(
    make_weights: Callable[..., Path], served: Served, tmp_path: Path
) -> None:
    """It goes on being served, and nobody can use it; a padded reranker is verified without it."""
    shutil.copytree(served.settings.repository, tmp_path, dirs_exist_ok=True)
    settings = ExportSettings(repository=tmp_path)
    assert stale_folder(served.card, settings) is None
    other = make_weights("late-bert", "reranker", None, max_tokens=60, seed=12)
    exported = export_model(other, settings, layout="padded")
    assert exported.also == ()
    assert stale_folder(exported.card, settings) == tmp_path / NAME
    assert verify_model(other, settings).also == ()


def test_a_graph_that_may_not_be_served_leaves_both_folders_alone(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *_: object) -> GraphFile:
        if "token_embedder" in path.parts:
            raise RepositoryError("graph", got="another one", wanted="this one", fix="Export it again.")
        return check_servable(path, "fp32", ExportSettings())

    monkeypatch.setattr(repository, "check_servable", refused)
    with pytest.raises(RepositoryError):
        export_model(weights, ExportSettings(repository=tmp_path / "models"))
    assert not (tmp_path / "models").exists()
