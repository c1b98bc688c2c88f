"""Every family, role, layout and core against transformers' own model, run unpadded on one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from skillserve.card import ModelCard, read_card, write_card
from skillserve.errors import CardError
from skillserve.tensors import Ids
from skillserve_export.families import FAMILIES, family_of
from skillserve_export.graph import export_packed, export_padded, export_stock
from skillserve_export.late_stock import open_stock
from skillserve_export.parity import PackedGraph, PaddedGraph, check_parity, malformed_requests
from skillserve_export.sample import ParitySample, load_sample
from skillserve_export.stock import StockGraph

SAME_ROW = 2e-6
"""Sums of float32 in another order, on unit rows."""
SAME_SCORE = 1e-5
"""The same on scores, relative to the largest."""
ALONE = 0.5
"""A row in company may differ from the row alone by this part of it."""

CASES: dict[str, tuple[Any, ...]] = {
    "bert-mean": ("bert", "embedder", "mean", 60, {}),
    "bert-score": ("bert", "reranker", None, 60, {}),
    "late-bert": ("late-bert", "reranker", None, 60, {}),
    "late-bert-wide": ("late-bert", "reranker", None, 60, {"window": 1000, "scale": 20}),
    "xlm-roberta-cls": ("xlm-roberta", "embedder", "cls", 64, {}),
    "xlm-roberta-score": ("xlm-roberta", "reranker", None, 64, {}),
    "modernbert-cls": ("modernbert", "embedder", "cls", 140, {}),
    "modernbert-mean": ("modernbert", "embedder", "mean", 140, {"global_attn_every_n_layers": 2}),
    "modernbert-score": ("modernbert", "reranker", None, 140, {"num_hidden_layers": 2}),
    "modernbert-score-mean": ("modernbert", "reranker", None, 140, {"classifier_pooling": "mean"}),
    "qwen3-last": ("qwen3", "embedder", "last", 140, {}),
    "qwen3-window": (
        *("qwen3", "embedder", "last", 140),
        {"use_sliding_window": True, "sliding_window": 30, "max_window_layers": 1},
    ),
    "qwen3-gap": ("qwen3", "reranker", None, 300, {}),
    "qwen3-gap-untied": ("qwen3", "reranker", None, 300, {"tie_word_embeddings": False, "num_key_value_heads": 1}),
}
"""Family, role, pooling, longest sequence (more than one chunk of a band where there are bands), configuration."""


class Subject(NamedTuple):
    """A random model with what its graphs are compared with."""

    card: ModelCard
    folder: Path
    model: Any
    stock: StockGraph
    sample: ParitySample
    pool: list[Ids]
    """Sequences of every id and of random lengths, 1 and the longest among them."""
    row: Callable[[int], Any]
    """What transformers says of one of them."""


@pytest.fixture(scope="module", params=CASES)
def subject(
    request: pytest.FixtureRequest,
    make_weights: Callable[..., Path],
    random_ids: Callable[..., Ids],
    late_score: Callable[[Path, Ids], float],
    tmp_path_factory: pytest.TempPathFactory,
) -> Subject:
    """One case, loaded once for all of its graphs."""
    family, role, pooling, max_tokens, config = CASES[request.param]
    folder = make_weights(family, role, pooling, max_tokens=max_tokens, seed=len(request.param), **config)
    card = read_card(folder)
    model = family_of(card).load(folder, card)
    stock = tmp_path_factory.mktemp("stock") / "stock.onnx"
    export_stock(model, card, stock)
    sample = _shortened(load_sample(card, folder, None))
    rng = np.random.default_rng(3)
    lens = [1, max_tokens, 2, *rng.integers(1, max_tokens, 13)]
    pool = [random_ids(rng, card, n, sample.tokens) for n in lens]
    # Padding's own id too, which XLM-RoBERTa does not count.
    pool[1][1:4] = 1, 0, card.vocab_size - 1
    if card.score_kind == "max_sim":
        pool[1][4] = sample.tokens[0]
        row = cache(lambda at: np.float32(late_score(folder, pool[at])))
    else:
        row = _alone(folder, card, pool)
    return Subject(card, folder, model, open_stock(stock, card, folder), sample, pool, row)


def _shortened(sample: ParitySample) -> ParitySample:
    """Three requests and four skills of a sample."""
    if sample.tokens:
        at = [query * sample.num_skills + skill for query in range(3) for skill in range(4)]
    else:
        at = [0, 1, 2, *range(sample.num_queries, sample.num_queries + 4)]
    return ParitySample([sample.sequences[i] for i in at], 3, 4, sample.tokens)


def _alone(folder: Path, card: ModelCard, pool: list[Ids]) -> Callable[[int], Any]:
    kinds = {"cosine": AutoModel, "logit": AutoModelForSequenceClassification, "yes_no": AutoModelForCausalLM}
    model = kinds[card.score_kind].from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @cache
    def row(at: int) -> Any:
        ids = torch.from_numpy(pool[at][None]).long()
        inputs = {"input_ids": ids}
        if card.family == "bert" and card.role == "reranker":
            [separators] = np.where(pool[at] == tokenizer.token_to_id("[SEP]"))
            first = separators[0] if len(separators) else ids.shape[1]
            inputs["token_type_ids"] = (torch.arange(ids.shape[1]) > first).long()[None]
        with torch.no_grad():
            output = model(**inputs)
        if card.score_kind == "logit":
            return output.logits[0, 0].numpy()
        if card.score_kind == "yes_no":
            yes, no = (output.logits[0, -1, tokenizer.token_to_id(answer)].double() for answer in ("yes", "no"))
            return (yes - no).float().numpy()
        hidden = output.last_hidden_state[0].double()
        pooled = {"cls": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[card.pooling or ""]
        return (pooled / pooled.norm()).float().numpy()

    return row


@pytest.fixture(scope="module", params=["loop", "gather", "padded"])
def graph(
    request: pytest.FixtureRequest, subject: Subject, tmp_path_factory: pytest.TempPathFactory
) -> PackedGraph | PaddedGraph:
    """The subject's graph in one of the ways to make one."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    family, (card, folder, model, *_) = family_of(subject.card), subject
    if request.param == "padded":
        export_padded(family.padded(model, card, folder), card, path)
        return PaddedGraph(path)
    export_packed(family.packed(model, card, folder, 20_000), card, card.role, request.param, path)
    return PackedGraph(path)


def assert_same(subject: Subject, found: Any, wanted: Any, part: float = 1.0) -> None:
    limit = SAME_ROW if subject.card.role == "embedder" else SAME_SCORE * max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=part * limit)


def test_the_gate_passes(subject: Subject, graph: PackedGraph | PaddedGraph) -> None:
    checks = check_parity(graph, subject.stock, subject.card, subject.sample)
    assert len(checks) == (6 if isinstance(graph, PackedGraph) else 5)
    assert all(check.passed for check in checks), checks


def test_rows_are_those_of_transformers_in_any_company(subject: Subject, graph: PackedGraph | PaddedGraph) -> None:
    """Any batch of any lengths: each row is what the model says of it alone, and what the graph says of it alone."""

    @cache
    def graphs_own(at: int) -> Any:
        return graph.run([subject.pool[at]])[0]

    @settings(max_examples=12, deadline=None, database=None)
    @given(st.lists(st.integers(0, len(subject.pool) - 1), min_size=1, max_size=7))
    def in_company(batch: list[int]) -> None:
        rows = graph.run([subject.pool[at] for at in batch])
        assert_same(subject, rows, np.stack([subject.row(at) for at in batch]))
        assert_same(subject, rows, np.stack([graphs_own(at) for at in batch]), ALONE)

    in_company()
    everything = list(range(len(subject.pool)))
    rows = graph.run([subject.pool[at] for at in everything])
    wanted = np.stack([subject.row(at) for at in everything])
    assert_same(subject, rows, wanted)
    assert wanted.std() > 1e3 * SAME_ROW, "or a graph that answers the same to everything would pass"


def test_malformed_neighbours_are_nan_and_change_nothing(subject: Subject, graph: PackedGraph | PaddedGraph) -> None:
    """Every hazard in one batch, each between two sound requests."""
    if isinstance(graph, PaddedGraph):
        pytest.skip("a padded batch has no boundaries that a request could shift")
    hazards = malformed_requests(subject.card, subject.sample.tokens).values()
    requests = [(subject.pool[0], [len(subject.pool[0])])]
    for at, (ids, lens) in enumerate(hazards, start=1):
        requests += [(np.asarray(ids), lens), (subject.pool[at], [len(subject.pool[at])])]
    rows = graph.run_raw(
        np.concatenate([ids for ids, _ in requests]),
        np.concatenate([lens for _, lens in requests]),
        np.cumsum([len(ids) for ids, _ in requests]),
        np.cumsum([len(lens) for _, lens in requests]),
    )
    sound = np.repeat([i % 2 == 0 for i in range(len(requests))], [len(lens) for _, lens in requests])
    assert_same(subject, rows[sound], np.stack([subject.row(at) for at in range(len(hazards) + 1)]))
    assert np.isnan(rows[~sound]).all()


def test_a_graph_keeps_to_old_standard_operators(graph: PackedGraph | PaddedGraph) -> None:
    model = onnx.load(graph.session._model_path)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert model.ir_version <= 8
    assert not model.functions


def test_the_gate_sees_a_moved_weight(subject: Subject, graph: PackedGraph | PaddedGraph, tmp_path: Path) -> None:
    """One tensor of each graph, another in each: words, norms, rotary tables, heads, the gap's direction."""
    model = onnx.load(graph.session._model_path)
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    # A key's bias adds the same to all of a token's scores, so a softmax takes it out again.
    weights = [tensor for tensor in floats if np.prod(tensor.dims) >= 16 and not tensor.name.endswith("key.bias")]
    rng = np.random.default_rng(len(model.graph.node))
    weight = weights[rng.integers(len(weights))]
    values = onnx.numpy_helper.to_array(weight)
    moved = values + 0.1 * max(1.0, float(np.abs(values).max())) * rng.normal(size=values.shape)
    weight.raw_data = moved.astype(np.float32).tobytes()
    onnx.save(model, tmp_path / "moved.onnx")
    checks = check_parity(type(graph)(tmp_path / "moved.onnx"), subject.stock, subject.card, subject.sample)
    assert not next(check for check in checks if check.name == "values").passed, weight.name


def test_every_family_is_tested() -> None:
    assert {family for family, *_ in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_weights_without_the_head_of_a_reranker_are_refused(family: str, make_weights: Callable[..., Path]) -> None:
    """Transformers would draw the missing tensors at random, for graph and reference alike."""
    config = {"tie_word_embeddings": False} if family == "qwen3" else {}
    base = family.removeprefix("late-")
    folder = make_weights(base, "embedder", {"qwen3": "last"}.get(family, "cls"), max_tokens=60, **config)
    kind = {"qwen3": "yes_no", "late-bert": "max_sim"}.get(family, "logit")
    changes = {"role": "reranker", "dim": None, "pooling": None, "normalised": False, "score_kind": kind}
    card = read_card(folder)
    frame = "<s>{query}{skill}</s>"
    card = write_card(folder, card.model_copy(update=changes | {"family": family, "frame": frame}))
    with pytest.raises(CardError, match=r"weights in .* got .*no `.*(classifier|head|token_weights)"):
        family_of(card).load(folder, card)


def test_a_card_that_promises_tokens_of_a_family_that_compares_none_is_refused(
    make_weights: Callable[..., Path],
) -> None:
    folder = make_weights("bert", "reranker", None, max_tokens=60)
    true = read_card(folder)
    family, card = family_of(true), true.model_copy(update={"score_kind": "max_sim"})
    with pytest.raises(CardError, match="score_kind max_sim; wanted score_kind logit"):
        family.load(folder, card)
    with pytest.raises(CardError, match="which reads pairs whole"):
        family.interaction(card, folder)
    with pytest.raises(CardError, match="which reads pairs whole"):
        family.token_embedder(family.load(folder, true), card, folder, 1024)
