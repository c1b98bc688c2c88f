"""Other precisions of every family, layout and core: what is rounded, what is not; that company does not matter."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from skillserve.card import ModelCard, read_card
from skillserve.graph_file import CONTRIBUTED, check_graph
from skillserve.tensors import Ids, Layout, Precision
from skillserve_export.families import family_of
from skillserve_export.files import write_whole
from skillserve_export.graph import export_packed, export_padded, export_stock
from skillserve_export.late_stock import open_stock
from skillserve_export.opened import GRAPHS
from skillserve_export.parity import ROUNDED_TOLERANCE, SCORE_SLACK, check_parity
from skillserve_export.precision import lower
from skillserve_export.sample import ParitySample, load_sample
from skillserve_export.served import ServedGraph
from skillserve_export.stock import StockGraph

CASES: dict[str, tuple[Any, ...]] = {
    "bert-mean": ("bert", "embedder", "mean", 60),
    "bert-score": ("bert", "reranker", None, 60),
    "late-bert": ("late-bert", "reranker", None, 60),
    "xlm-roberta-cls": ("xlm-roberta", "embedder", "cls", 64),
    "modernbert-mean": ("modernbert", "embedder", "mean", 140),
    "modernbert-score": ("modernbert", "reranker", None, 140),
    "qwen3-last": ("qwen3", "embedder", "last", 140),
    "qwen3-gap": ("qwen3", "reranker", None, 300),
}
"""Family, role, pooling, longest sequence."""

LAYERS = {"bert": 12, "late-bert": 12, "xlm-roberta": 12, "modernbert": 16, "qwen3": 14}
"""Linear layers in the encoder of each: 6 a layer of BERT, 4 of ModernBERT, 7 of Qwen3."""

KINDS = ("loop", "gather", "padded")

STORED = {
    "int8": TensorProto.INT8,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "w8": TensorProto.UINT8,
    "w4": TensorProto.UINT8,
}
"""What the weights of a layer are stored as."""


class Subject(NamedTuple):
    """A random model, its graphs in float32 by kind, and what they are compared with."""

    card: ModelCard
    graphs: dict[str, Path]
    stock: StockGraph
    sample: ParitySample

    def lowered(self, kind: str, precision: Precision, folder: Path) -> ServedGraph:
        """One of the graphs in another precision."""
        layout: Layout = "padded" if kind == "padded" else "packed"
        path = folder / f"{kind}-{precision}.onnx"
        shutil.copyfile(self.graphs[kind], path)
        lower(path, precision, self.card, self.sample.sequences, GRAPHS[layout].feeds)
        return GRAPHS[layout](path)


@pytest.fixture(scope="module", params=CASES)
def subject(
    request: pytest.FixtureRequest, make_weights: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    """One case."""
    family, role, pooling, max_tokens = CASES[request.param]
    weights = make_weights(family, role, pooling, max_tokens=max_tokens, seed=3)
    card = read_card(weights)
    exporter = family_of(card)
    model = exporter.load(weights, card)
    folder = tmp_path_factory.mktemp("graphs")
    graphs = {kind: folder / f"{kind}.onnx" for kind in KINDS}
    export_packed(exporter.packed(model, card, weights, 20_000), card, card.role, "loop", graphs["loop"])
    export_packed(exporter.packed(model, card, weights, 20_000), card, card.role, "gather", graphs["gather"])
    export_padded(exporter.padded(model, card, weights), card, graphs["padded"])
    export_stock(model, card, folder / "stock.onnx")
    return Subject(card, graphs, open_stock(folder / "stock.onnx", card, weights), load_sample(card, weights, None))


@pytest.mark.parametrize("precision", ["int8", "fp16", "w8", "w4"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lower_precision_is_near_its_weights_and_the_same_in_any_company(
    subject: Subject, kind: str, precision: Precision, tmp_path: Path
) -> None:
    graph = subject.lowered(kind, precision, tmp_path)
    checks = check_parity(graph, subject.stock, subject.card, subject.sample, precision=precision)
    assert [check.name for check in checks if not check.passed] == []


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16", "w8", "w4"])
def test_every_layer_of_the_encoder_is_lowered_and_the_head_is_not(
    subject: Subject, precision: Precision, tmp_path: Path
) -> None:
    card, path = subject.card, tmp_path / "model.onnx"
    for kind in KINDS:
        shutil.copyfile(subject.graphs[kind], path)
        layout: Layout = "padded" if kind == "padded" else "packed"
        lower(path, precision, card, subject.sample.sequences, GRAPHS[layout].feeds)
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        # Products of what is transposed are in the loops alone; elsewhere ONNX Runtime fuses them itself.
        assert check_graph(path).contributed == CONTRIBUTED[precision] - ({"FusedMatMul"} if kind != "loop" else set())
        assert (model.ir_version, model.opset_import[0].version) == (8, 17)
        kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        weights = Counter(
            kinds[node.input[1]]
            for node in model.graph.node
            if node.op_type in {"MatMul", "Gemm", "MatMulIntegerToFloat", "MatMulNBits"} and kinds.get(node.input[1])
        )
        head = {"bert": 2, "xlm-roberta": 2, "modernbert": 2}.get(card.family, 0) if card.dim is None else 0
        lowered = STORED[precision]
        assert weights == Counter({lowered: LAYERS[card.family], TensorProto.FLOAT: head})
        # Beside the layers only the table of words: positions and rotary angles stay exact.
        words = TensorProto.INT8 if lowered == TensorProto.UINT8 else lowered
        assert sum(kind == words for kind in kinds.values()) >= 1 + (words == lowered) * LAYERS[card.family]


MOVERS = {"Cast", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_in_products_only(subject: Subject, kind: str, tmp_path: Path) -> None:
    """By the types that ONNX infers: norms, softmax, activations, rotary positions and pooling never see it."""
    subject.lowered(kind, "fp16", tmp_path)
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / f"{kind}-fp16.onnx"))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    kinds |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    seen = {node.op_type for node in model.graph.node for name in node.input if kinds.get(name) == TensorProto.FLOAT16}
    assert seen <= MOVERS | {"MatMul", "Gemm"}
    products = [
        {kinds.get(name) for name in node.input if name} for node in model.graph.node if node.op_type == "MatMul"
    ]
    assert kind == "loop" or sum(types == {TensorProto.FLOAT16} for types in products) >= 4, "attention is halved, too"


@pytest.mark.parametrize("kind", ["gather", "padded"])
def test_bf16_computes_what_bf16_should(subject: Subject, kind: str, tmp_path: Path) -> None:
    """In ONNX's own evaluator, which fails at the empty lists of `loop`: ONNX Runtime has no such kernels for CPUs."""
    path = tmp_path / "model.onnx"
    shutil.copyfile(subject.graphs[kind], path)
    graphs = GRAPHS["padded" if kind == "padded" else "packed"]
    feeds = graphs.feeds(subject.sample.sequences[:3])
    exact = graphs(path).run(subject.sample.sequences[:3])
    lower(path, "bf16", subject.card, subject.sample.sequences, graphs.feeds)
    [rows] = ReferenceEvaluator(onnx.load(path)).run(None, dict(feeds))
    assert rows.dtype == np.float32
    difference = np.abs(rows - exact).max() / max(1.0, np.abs(exact).max())
    slack = 1 if subject.card.role == "embedder" else SCORE_SLACK
    assert 1e-5 < difference < slack * ROUNDED_TOLERANCE["bf16"]


@pytest.fixture(scope="module", params=[("loop", "int8"), ("gather", "int8"), ("loop", "w8"), ("loop", "w4")])
def quantised(
    request: pytest.FixtureRequest, subject: Subject, tmp_path_factory: pytest.TempPathFactory
) -> ServedGraph:
    """A graph with one core, which rounds."""
    return subject.lowered(*request.param, tmp_path_factory.mktemp("quantised"))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), lens=st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_rows_do_not_depend_on_company(
    quantised: ServedGraph, subject: Subject, random_ids: Callable[..., Ids], seed: int, lens: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    sequences = [random_ids(rng, subject.card, num, subject.sample.tokens) for num in lens]
    alone = np.concatenate([quantised.run([sequence]) for sequence in sequences])
    together = quantised.run(sequences)
    np.testing.assert_allclose(together, alone, atol=5e-6 * max(1.0, np.abs(alone).max()), rtol=0)


@pytest.mark.parametrize("precision", ["int8", "w8", "w4"])
def test_weights_in_a_second_file_are_rewritten_too(subject: Subject, precision: Precision, tmp_path: Path) -> None:
    whole = subject.lowered("loop", precision, tmp_path)
    apart = tmp_path / "apart" / "model.onnx"
    apart.parent.mkdir()
    write_whole(onnx.load(subject.graphs["loop"]), {}, apart, one_file_bytes=0)
    assert len(list(apart.parent.iterdir())) == 2
    lower(apart, precision, subject.card, subject.sample.sequences, GRAPHS["packed"].feeds)
    assert [file.name for file in apart.parent.iterdir()] == ["model.onnx"]
    sequences = subject.sample.sequences[:5]
    np.testing.assert_array_equal(GRAPHS["packed"](apart).run(sequences), whole.run(sequences))
