"""The scorers of the rank gate, where sides of pairs are read apart: each text is read once, for the same scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from skillserve.card import ModelCard, read_card
from skillserve.tensors import Ids
from skillserve_export import scorers
from skillserve_export.families import family_of
from skillserve_export.graph import export_packed, export_stock
from skillserve_export.late_stock import open_stock
from skillserve_export.scorers import GraphScorer, StockScorer
from skillserve_export.served import PackedGraph

SAME_SCORE = 2e-5
"""Sums of float32 in another order behind two layers, times the scale of 10."""
OPENING, SEPARATOR = 2, 3


class Judged(NamedTuple):
    """A random model and the candidates of three requests, in turns, as a run may list them."""

    folder: Path
    card: ModelCard
    requests: list[Ids]
    skills: list[Ids]

    @property
    def pairs(self) -> list[Ids]:
        """Every skill beside every request; neighbours have different requests."""
        return [np.concatenate([request, skill]) for skill in self.skills for request in self.requests]


@pytest.fixture(scope="module")
def judged(make_weights: Callable[..., Path]) -> Judged:
    """Requests of the same length, so that an order by length would leave them in turns."""
    folder = make_weights("late-bert", "reranker", None, max_tokens=60, seed=7)
    card = read_card(folder)
    rng = np.random.default_rng(1)

    def text(num: int) -> Ids:
        return np.array([OPENING, *rng.integers(5, card.vocab_size, num), SEPARATOR], np.int32)

    return Judged(folder, card, [text(9) for _ in range(3)], [text(n) for n in (4, 12, 12, 20, 30)])


class Watched(PackedGraph):
    """Keeps what it is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[Sequence[Ids]] = []

    def run(self, sequences: Sequence[Ids]) -> npt.NDArray[np.float32]:
        """As the graph does."""
        self.batches.append(sequences)
        return super().run(sequences)


def test_a_packed_graph_gets_the_pairs_of_a_request_one_behind_the_other(
    judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_score: Callable[[Path, Ids], float]
) -> None:
    folder, card, requests, skills = judged
    family = family_of(card)
    export_packed(
        family.packed(family.load(folder, card), card, folder, 20_000), card, card.role, "loop", tmp_path / "model.onnx"
    )
    graph = Watched(tmp_path / "model.onnx")
    scorer = GraphScorer(graph=graph, card=card, layout="packed", precision="fp32", graph_digest="")
    monkeypatch.setattr(scorers, "_BATCH_TOKENS", 150)
    rows = scorer.score(judged.pairs)
    np.testing.assert_allclose(rows, [late_score(folder, pair) for pair in judged.pairs], rtol=0, atol=SAME_SCORE)
    asked = [pair[: len(requests[0])].tobytes() for batch in graph.batches for pair in batch]
    assert len(graph.batches) > 1
    assert len(asked) == len(requests) * len(skills)
    assert sum(before != after for before, after in pairwise(asked)) == len(requests) - 1


def test_the_reference_reads_each_text_once(
    judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_score: Callable[[Path, Ids], float]
) -> None:
    """Skills too, which are candidates of all requests; in as many executions as there are texts."""
    folder, card, requests, skills = judged
    export_stock(family_of(card).load(folder, card), card, tmp_path / "stock.onnx")
    stock = open_stock(tmp_path / "stock.onnx", card, folder)
    read: list[bytes] = []
    run = stock.session.run

    def counted(names: Any, feeds: dict[str, npt.NDArray[Any]]) -> Any:
        read.append(feeds["input_ids"].tobytes())
        return run(names, feeds)

    monkeypatch.setattr(stock.session, "run", counted)
    monkeypatch.setattr(scorers, "_BATCH_TOKENS", 150)
    scorer = StockScorer(graph=stock, tokens=(OPENING,))
    rows = scorer.score(judged.pairs)
    np.testing.assert_allclose(rows, [late_score(folder, pair) for pair in judged.pairs], rtol=0, atol=SAME_SCORE)
    assert len(read) == len(set(read)) == len(requests) + len(skills)
    np.testing.assert_array_equal(scorer.score(judged.pairs[::-1]), rows[::-1])
    assert len(read) == len(requests) + len(skills)
