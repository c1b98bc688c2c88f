"""Are rows right? Beside those of the fp32 graph, which ran every sequence alone.

Embeddings are compared by cosine, row by row. A score is one number, so scores are compared by their correlation over
all pairs of a part. Whether small differences matter is told by rankings, not here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skillserve.tensors import Precision
from skillserve_bench.speed.contenders import Contender
from skillserve_client.wire import Floats

__all__ = ["FLOORS", "PEER_FLOORS", "Agreement", "agreement", "floor_for"]

FLOORS: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.9999, "bf16": 0.999, "int8": 0.98}
"""Least cosine of any row, or correlation of scores. Sums in another order leave 1 - 1e-6 in fp32; W8A8 left 0.9977 at
least on 54 texts of all-MiniLM-L6-v2, and thousands reach further; the row of another text is farther than that."""

PEER_FLOORS: dict[Precision, float] = {"fp32": 0.999, "fp16": 0.999, "bf16": 0.998, "int8": 0.5}
"""Least mean over rows. Peers parse special tokens that a text spells out, which changes single rows, and cut pairs of
long requests elsewhere. Their own int8 has one scale of activations for a whole batch; what it loses is told by its
rankings, and only rows that belong to other texts are wrong."""

_SAME_SCORES = 1e-6
"""Scores that differ by less are one number to float32, and have no correlation."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near rows are to the reference's, 1 for the same."""

    least: float
    mean: float

    def passes(self, contender: Contender) -> bool:
        """Whether it is near enough; NaN is not."""
        return (self.mean if contender.kind == "peer" else self.least) >= floor_for(contender)


def floor_for(contender: Contender) -> float:
    """What a contender has to reach: ours in every row, a peer on average."""
    return (PEER_FLOORS if contender.kind == "peer" else FLOORS)[contender.precision]


def agreement(rows: Floats, reference: Floats) -> Agreement:
    """Cosines of embeddings `[n, D]`, or the correlation of scores `[n]`; raises ValueError for another shape."""
    if rows.shape != reference.shape:
        raise ValueError(f"rows {rows.shape} beside {reference.shape}")
    here, there = rows.astype(np.float64), reference.astype(np.float64)
    if here.ndim == 1:
        if np.abs(here - there).max() <= _SAME_SCORES:
            return Agreement(1.0, 1.0)
        here, there = (here - here.mean())[None, :], (there - there.mean())[None, :]
    norms = np.linalg.norm(here, axis=1) * np.linalg.norm(there, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (here * there).sum(axis=1) / norms
    return Agreement(float(cosines.min()), float(cosines.mean()))
