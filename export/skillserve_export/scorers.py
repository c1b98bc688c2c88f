"""Graphs in this process as scorers (`skillserve.scoring`): the candidate that is judged, and its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skillserve.card import ModelCard
from skillserve.pairs import reading_order
from skillserve.scoring import Progress, Rows
from skillserve.tensors import Ids, Precision, token_budget_batches
from skillserve_export.device import runtime
from skillserve_export.served import ServedGraph
from skillserve_export.stock import StockGraph

__all__ = ["GraphScorer", "StockScorer"]

_BATCH_TOKENS = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphScorer:
    """A graph of a servable layout."""

    graph: ServedGraph
    card: ModelCard
    layout: str
    precision: Precision
    graph_digest: str

    @property
    def name(self) -> str:
        """Layout, precision and model."""
        return f"{self.layout} {self.precision} {self.graph.title} of `{self.card.name}`"

    @property
    def facts(self) -> Mapping[str, str]:
        """What it is, and on what it runs."""
        return {
            "runtime": runtime(self.graph.device),
            "digest": self.card.digest,
            "graph_digest": self.graph_digest,
            "layout": self.layout,
        }

    def score(self, sequences: Sequence[Ids], *, progress: Progress | None = None) -> Rows:
        """Rows in the order of the sequences."""
        # Packed graphs drop a request that comes again in the next pair; padded ones fill up to the longest.
        key = reading_order(self.card.score_kind) if self.layout == "packed" else len
        return _in_batches(self.graph.run, sequences, progress, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class StockScorer:
    """Optimum's stock export in float32."""

    graph: StockGraph
    tokens: tuple[int, ...]
    """What scores are read with, as `sample.tokens_of_scores` finds them."""
    precision: Precision = "fp32"

    @property
    def name(self) -> str:
        """Whose export it is."""
        return f"stock fp32 export of `{self.graph.card.name}`"

    @property
    def facts(self) -> Mapping[str, str]:
        """What it is, and on what it runs."""
        return {"runtime": runtime("cpu"), "digest": self.graph.card.digest}

    def score(self, sequences: Sequence[Ids], *, progress: Progress | None = None) -> Rows:
        """Rows in the order of the sequences."""
        key = reading_order(self.graph.card.score_kind)
        return _in_batches(lambda batch: self.graph.run(batch, self.tokens), sequences, progress, key)


def _in_batches(
    run: Callable[[Sequence[Ids]], Rows],
    sequences: Sequence[Ids],
    progress: Progress | None,
    key: Callable[[Ids], Any],
) -> Rows:
    """Run in the order of a key, neighbours together; rows come home to their places."""
    order = sorted(range(len(sequences)), key=lambda i: key(sequences[i]))
    parts = []
    for cut in token_budget_batches([len(sequences[i]) for i in order], max_tokens=_BATCH_TOKENS):
        parts.append(run([sequences[i] for i in order[cut]]))
        if progress:
            progress(len(parts[-1]))
    rows = np.concatenate(parts)
    home = np.empty_like(rows)
    home[order] = rows
    return home
