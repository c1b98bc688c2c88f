"""Late interaction outside of a graph: scores of a request's tokens beside those of skills (arXiv 2004.12832).

    nearest_q = max over a skill's tokens s that weigh something of cosine(q, s)
    score     = scale · max over stretches of (Σ weight_q · nearest_q / Σ weight_q)

A stretch is `window` neighbours of the request, or all of a shorter one. Token embeddings carry both: the direction of
a row says what its token means, its length what it weighs. So the product of a request's rows with skills' rows of
length 1 is weight · cosine already.

Shape legend: Q tokens of a request, K of all its candidates, N candidates, D embedding dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Interaction", "max_sim", "unit_rows"]

Floats = npt.NDArray[np.float32]

_LEAST_WEIGHT = 1e-6
"""What a stretch without any weight is divided by."""


@dataclass(frozen=True, slots=True)
class Interaction:
    """What scores are made with, chosen when a reranker was trained."""

    window: int
    """Tokens of a stretch."""
    scale: float


def unit_rows(rows: Floats) -> Floats:
    """The rows `[L, D]` that weigh something, made length 1: `[K, D]`, in order; NaN stays, and is seen in scores."""
    lengths = np.linalg.norm(rows, axis=1)
    heard = lengths != 0
    units: Floats = rows[heard] / lengths[heard, None]
    return units


def max_sim(
    asked: Floats, offered: Floats, ends: npt.NDArray[np.int64], how: Interaction, *, factors: Floats | None = None
) -> Floats:
    """Scores `[N]` of one request `[Q, D]` beside N skills, whose rows `[K, D]` stand one behind the other.

    `ends [N]` are their ends among the rows. Rows have length 1, or would have it if multiplied by `factors [K]`. A
    skill without rows is as far from every token as can be.
    """
    products_QK = asked @ offered.T
    if factors is not None:
        products_QK *= factors
    weights_Q = np.linalg.norm(asked, axis=1)
    nearest_QN = np.repeat(-weights_Q[:, None], len(ends), axis=1)
    starts = np.concatenate([[0], ends[:-1]])
    heard_N = np.flatnonzero(ends > starts)
    if len(heard_N):
        nearest_QN[:, heard_N] = np.maximum.reduceat(products_QK, starts[heard_N], axis=1)
    size = min(how.window, len(asked))
    sums_WN = np.lib.stride_tricks.sliding_window_view(nearest_QN, size, axis=0).sum(axis=-1)
    weight_W = np.lib.stride_tricks.sliding_window_view(weights_Q, size).sum(axis=-1)
    scores: Floats = how.scale * (sums_WN / np.maximum(weight_W, _LEAST_WEIGHT)[:, None]).max(axis=0)
    return scores.astype(np.float32, copy=False)
