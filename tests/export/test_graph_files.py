"""Weights too large for one file stand in a second one, which is digested, verified and loaded with the first."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from skillserve.card import read_card
from skillserve.errors import RepositoryError
from skillserve.settings import ExportSettings
from skillserve_export import graph
from skillserve_export.families import family_of
from skillserve_export.files import read_apart, write_whole
from skillserve_export.graph import export_packed
from skillserve_export.parity import PackedGraph
from skillserve_export.repository import export_model, verify_model

SMALL = 20_000
"""Bytes; the tiny models have more."""


@pytest.fixture
def two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are written as if the limit were small."""
    monkeypatch.setattr(graph, "write_whole", functools.partial(write_whole, one_file_bytes=SMALL))


def test_a_graph_in_two_files_is_the_same_graph(tiny_embedder: Path, tmp_path: Path) -> None:
    card = read_card(tiny_embedder)
    family = family_of(card)
    packed = family.packed(family.load(tiny_embedder, card), card, tiny_embedder, 1_000)
    one, two = tmp_path / "one.onnx", tmp_path / "model.onnx"
    export_packed(packed, card, card.role, "loop", one)
    write_whole(*read_apart(one), two, one_file_bytes=SMALL)
    assert {path.name for path in tmp_path.iterdir()} == {"one.onnx", "model.onnx", "model.onnx.data"}
    assert two.stat().st_size < one.stat().st_size - SMALL
    places = {
        entry.value
        for tensor in onnx.load(two, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {"model.onnx.data"}
    sequences = [np.arange(n, dtype=np.int32) for n in (1, 5, 48)]
    np.testing.assert_array_equal(PackedGraph(two).run(sequences), PackedGraph(one).run(sequences))


def test_two_files_become_one_again(tiny_embedder: Path, tmp_path: Path) -> None:
    """And what stood there before is not left behind, or its weights would be appended to."""
    card = read_card(tiny_embedder)
    family = family_of(card)
    path = tmp_path / "model.onnx"
    export_packed(
        family.packed(family.load(tiny_embedder, card), card, tiny_embedder, 1_000), card, card.role, "loop", path
    )
    before = path.read_bytes()
    for _ in range(2):
        write_whole(*read_apart(path), path, one_file_bytes=SMALL)
    weights = sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)
    assert (tmp_path / "model.onnx.data").stat().st_size < 2 * weights
    write_whole(*read_apart(path), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert onnx.load(path).graph == onnx.load_from_string(before).graph


@pytest.mark.usefixtures("two_files")
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_model_folder_holds_both_files_under_digest(
    make_weights: Callable[..., Path], tmp_path: Path, layout: str
) -> None:
    weights = make_weights("qwen3", "embedder", "last", max_tokens=60)
    settings = ExportSettings(repository=tmp_path)
    exported = export_model(weights, settings, layout=layout)
    version = exported.folder / "1"
    assert {path.name for path in version.iterdir()} == {"model.onnx", "model.onnx.data"}
    record = json.loads((exported.folder / "export.json").read_bytes())
    assert {"1/model.onnx", "1/model.onnx.data"} <= record["files"].keys()
    assert all(check.passed for check in verify_model(weights, settings).checks)
    data = version / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    with pytest.raises(RepositoryError, match=r"changed.*1/model\.onnx\.data"):
        verify_model(weights, settings)
    data.unlink()
    with pytest.raises(RepositoryError, match=r"missing.*1/model\.onnx\.data"):
        verify_model(weights, settings)
