"""How a run went, for its card and its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Course"]

_FEW_SHARE = 0.1
"""First and final loss are means over this share of the steps, since single steps jump."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a run went."""

    steps: int
    """Steps that were made; fewer than planned if the hold-out stopped the run."""
    planned_steps: int
    seconds: float
    """Of this process alone, after a continuation not of the ones before."""
    tokens_per_s: int | None
    """Tokens read forward and backward by this process, padding not counted, a second of steps; None without steps."""
    peak_gpu_bytes: int | None
    """Most memory that tensors of this process held on its GPU; None on a CPU."""
    resumed_from: int | None
    """Step that the run went on from."""
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]
    holdout: Mapping[int, float]
    """Step → NDCG@10 of the hold-out, measured in the course of the run."""
    best_step: int
    """Step whose weights were kept: the best one on the hold-out where it was measured, else the last one."""

    @property
    def first_loss(self) -> float:
        """Mean over the first tenth of the steps."""
        return _mean(self.losses[: self._few])

    @property
    def final_loss(self) -> float:
        """Mean over the last tenth of the steps."""
        return _mean(self.losses[-self._few :])

    @property
    def _few(self) -> int:
        return max(1, round(len(self.losses) * _FEW_SHARE))


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), 4)
