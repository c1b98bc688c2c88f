"""Exported graphs in ONNX Runtime: parity with Optimum's stock export, and isolation of malformed requests."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from skillserve.card import ModelCard, read_card
from skillserve_export.families import family_of
from skillserve_export.graph import export_packed, export_padded, export_stock
from skillserve_export.parity import PackedGraph, PaddedGraph, check_parity, malformed_requests
from skillserve_export.sample import load_sample
from skillserve_export.stock import StockGraph

MAX_REQUEST_TOKENS = 20_000
ISOLATION_ROUNDS = 200
ISOLATION_TOLERANCE = 1e-6

Exported = tuple[ModelCard, PackedGraph, Path]


@pytest.fixture(scope="module", params=["loop", "gather"])
def core(request: pytest.FixtureRequest) -> str:
    """Both attention cores."""
    return str(request.param)


def _export(weights: Path, core: str, folder: Path) -> Exported:
    card = read_card(weights)
    family = family_of(card)
    model = family.load(weights, card)
    export_packed(family.packed(model, card, weights, MAX_REQUEST_TOKENS), card, card.role, core, folder / "model.onnx")
    export_stock(model, card, folder / "stock.onnx")
    return card, PackedGraph(folder / "model.onnx"), folder


@pytest.fixture(scope="module")
def embedder(tiny_embedder: Path, core: str, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tiny embedder exported with one core."""
    return _export(tiny_embedder, core, tmp_path_factory.mktemp("graph"))


@pytest.mark.parametrize("weights", ["tiny_embedder", "tiny_cls_embedder", "tiny_reranker"])
def test_a_packed_graph_equals_the_stock_export(
    weights: str, core: str, tmp_path: Path, sample_data: Path, request: pytest.FixtureRequest
) -> None:
    """Values, a row alone = first = last, malformed neighbours and rankings; both poolings and pair types."""
    folder = request.getfixturevalue(weights)
    card, packed, where = _export(folder, core, tmp_path)
    sample = load_sample(card, folder, sample_data)
    checks = check_parity(packed, StockGraph(where / "stock.onnx", card), card, sample)
    assert [check.name for check in checks] == [
        "interface",
        "shape and finite",
        "values",
        "batch invariance",
        "isolation",
        "rankings",
    ]
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("weights", ["tiny_embedder", "tiny_cls_embedder", "tiny_reranker"])
def test_a_padded_graph_equals_the_stock_export(
    weights: str, tmp_path: Path, sample_data: Path, request: pytest.FixtureRequest
) -> None:
    """The padded layout passes the same gate, pair types of the reranker included."""
    folder = request.getfixturevalue(weights)
    card = read_card(folder)
    family = family_of(card)
    model = family.load(folder, card)
    export_padded(family.padded(model, card, folder), card, tmp_path / "model.onnx")
    export_stock(model, card, tmp_path / "stock.onnx")
    sample = load_sample(card, folder, sample_data)
    stock = StockGraph(tmp_path / "stock.onnx", card)
    checks = check_parity(PaddedGraph(tmp_path / "model.onnx"), stock, card, sample)
    assert len(checks) == 5
    assert all(check.passed for check in checks), checks


class _Faulty(PackedGraph):
    """A graph with one fault."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(path)
        self.fault = fault

    def run_raw(self, *inputs: Any) -> Any:
        rows = super().run_raw(*inputs).copy()
        match self.fault:
            case "a row alone is NaN" if len(rows) == 1:
                rows[:] = np.nan
            case "rows depend on the batch size":
                rows += 1e-5 * (len(rows) == 7)
            case "neighbours shift" if np.isnan(rows).any():
                rows = np.roll(rows, 1, axis=0)
            case "malformed requests are answered":
                rows = np.nan_to_num(rows, nan=0.5)
            case "a row is not finite" if len(rows) > 8:
                rows[3] = np.inf
            case "two rows are swapped" if len(rows) > 30:
                rows[[25, 40]] = rows[[40, 25]]
            case "rows are too narrow":
                rows = rows[:, :-1]
        return rows


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("a row alone is NaN", "batch invariance"),
        ("rows depend on the batch size", "batch invariance"),
        ("neighbours shift", "isolation"),
        ("malformed requests are answered", "isolation"),
        ("a row is not finite", "shape and finite"),
        ("two rows are swapped", "rankings"),
        ("rows are too narrow", "shape and finite"),
    ],
)
def test_every_check_of_the_gate_can_fail(
    embedder: Exported, tiny_embedder: Path, sample_data: Path, fault: str, check: str
) -> None:
    """One fault each, in an otherwise right graph, is found by the check that is there for it."""
    card, _, folder = embedder
    stock = StockGraph(folder / "stock.onnx", card)
    sample = load_sample(card, tiny_embedder, sample_data)
    checks = check_parity(_Faulty(folder / "model.onnx", fault), stock, card, sample)
    assert check in {each.name for each in checks if not each.passed}


def test_the_gate_fails_a_graph_of_other_weights(embedder: Exported, tiny_embedder: Path, tmp_path: Path) -> None:
    """One weight moved by 1 % is seen in the values."""
    card, _, folder = embedder
    graph = onnx.load(folder / "model.onnx")
    tensor = max(graph.graph.initializer, key=lambda initializer: len(initializer.raw_data))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values *= 1.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(graph, tmp_path / "moved.onnx")
    sample = load_sample(card, tiny_embedder, None)
    checks = check_parity(PackedGraph(tmp_path / "moved.onnx"), StockGraph(folder / "stock.onnx", card), card, sample)
    assert not next(check for check in checks if check.name == "values").passed


def test_the_gate_fails_a_graph_with_another_interface(embedder: Exported, tiny_embedder: Path) -> None:
    """The stock export has other names: nothing behind the interface check is run."""
    card, _, folder = embedder
    stock = folder / "stock.onnx"
    checks = check_parity(PackedGraph(stock), StockGraph(stock, card), card, load_sample(card, tiny_embedder, None))
    assert [(check.name, check.passed) for check in checks] == [("interface", False)]


def test_a_graph_holds_standard_operators_only(embedder: Exported) -> None:
    """No custom or contributed domain: the graph runs wherever opset 17 does, and no inner shape is claimed."""
    _, _, folder = embedder
    graph = onnx.load(folder / "model.onnx")
    assert [opset.domain for opset in graph.opset_import] == [""]
    assert graph.opset_import[0].version == 17
    assert graph.ir_version <= 8
    assert not graph.functions
    assert not graph.graph.value_info


def test_the_same_batch_gives_the_same_rows_every_time(embedder: Exported) -> None:
    """A pooling that adds from several threads without a lock is wrong only now and then."""
    card, packed, _ = embedder
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, card.vocab_size, n).astype(np.int32) for n in rng.integers(1, card.max_tokens, 64)]
    first = packed.run(sequences)
    for _ in range(20):
        np.testing.assert_array_equal(packed.run(sequences), first)


def test_malformed_requests_never_touch_their_neighbours(embedder: Exported) -> None:
    """Every hazard among six good requests, in random places and mixtures, over 200 rounds."""
    card, packed, _ = embedder
    rng = np.random.default_rng(7)
    hazards = list(malformed_requests(card).values())
    for _ in range(ISOLATION_ROUNDS):
        good = [
            [rng.integers(0, card.vocab_size, n).astype(np.int32) for n in rng.integers(1, card.max_tokens, 2)]
            for _ in range(6)
        ]
        expected = [packed.run(sequences) for sequences in good]
        requests = [(np.concatenate(s), [len(x) for x in s], i) for i, s in enumerate(good)]
        for hazard in rng.choice(len(hazards), rng.integers(1, 4)):
            ids, lens = hazards[hazard]
            requests.insert(rng.integers(0, len(requests) + 1), (np.asarray(ids), lens, -1))
        rows = packed.run_raw(
            np.concatenate([ids for ids, _, _ in requests]),
            np.concatenate([lens for _, lens, _ in requests]),
            np.cumsum([len(ids) for ids, _, _ in requests]),
            np.cumsum([len(lens) for _, lens, _ in requests]),
        )
        at = 0
        for _, lens, which in requests:
            mine, at = rows[at : at + len(lens)], at + len(lens)
            if which < 0:
                assert np.isnan(mine).all()
            else:
                np.testing.assert_allclose(mine, expected[which], atol=ISOLATION_TOLERANCE, rtol=0)


@pytest.mark.parametrize(("ids", "lens"), [([], [3]), ([5, 6, 7], []), ([], [])])
def test_whatever_follows_an_empty_tensor_is_refused(embedder: Exported, ids: list[int], lens: list[int]) -> None:
    """The server stops copying at an empty tensor; what follows it is uninitialised and must not be answered."""
    _, packed, _ = embedder
    before, after = [9, 8, 7], [1, 2]
    rows = packed.run_raw(
        [*before, *ids, *after],
        [3, *lens, 2],
        np.cumsum([3, len(ids), 2]),
        np.cumsum([1, len(lens), 1]),
    )
    np.testing.assert_allclose(rows[0], packed.run([np.asarray(before, np.int32)])[0], atol=ISOLATION_TOLERANCE)
    assert np.isnan(rows[1:]).all()


def test_a_batch_of_nothing_sound_answers_nan(embedder: Exported) -> None:
    """Also the smallest one: a request without tokens and sequences."""
    _, packed, _ = embedder
    assert np.isnan(packed.run_raw([5, 6], [3], [2], [1])).all()
    assert packed.run_raw([], [], [0], [0]).shape == (0, 32)


def test_a_request_beyond_the_token_limit_is_refused(embedder: Exported) -> None:
    """The bound on memory is part of the graph, so it holds on every backend."""
    _, packed, _ = embedder
    lens = [40] * (MAX_REQUEST_TOKENS // 40 + 1)
    rows = packed.run_raw([7] * (sum(lens) + 3), [*lens, 3], [sum(lens), sum(lens) + 3], [len(lens), len(lens) + 1])
    assert np.isnan(rows[:-1]).all()
    np.testing.assert_allclose(rows[-1], packed.run([np.array([7, 7, 7], np.int32)])[0], atol=ISOLATION_TOLERANCE)


def test_many_short_sequences_cost_what_their_tokens_cost(embedder: Exported) -> None:
    """Four times the sequences may not cost ten times the time: a list that is copied per sequence would."""
    _, packed, _ = embedder

    def fastest(count: int) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            packed.run_raw([7] * count, [1] * count, [count], [count])
            times.append(time.perf_counter() - start)
        return min(times)

    assert fastest(8_000) / fastest(2_000) < 10


def test_both_cores_agree(tiny_embedder: Path, tmp_path: Path) -> None:
    """The choice of the core is one of speed."""
    rows = []
    for core in ("loop", "gather"):
        folder = tmp_path / core
        folder.mkdir()
        card, packed, _ = _export(tiny_embedder, core, folder)
        rng = np.random.default_rng(3)
        rows.append(packed.run([rng.integers(0, card.vocab_size, n).astype(np.int32) for n in range(1, 40)]))
        shutil.rmtree(folder)
    np.testing.assert_allclose(rows[0], rows[1], atol=2e-6, rtol=0)
