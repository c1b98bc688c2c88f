"""The hold-out as a judge: only of models that have not seen it, and for rerankers with the weight that suits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from skillserve.card import ModelCard
from skillserve.errors import ConfigError
from skillserve.fusion import fuse
from skillserve.records import Run
from skillserve_training.dataset import TrainingData
from skillserve_training.evaluate import Reranker, ndcg
from skillserve_training.precision import Precision
from skillserve_training.systems import FirstStage

__all__ = ["RerankerFigures", "RerankerHoldout", "known_ndcg", "require_unseen"]

_RANKED = 100
"""Skills that the first stage ranks for a held-out request."""
_DEPTH = 20
"""Candidates that are reranked when the hold-out is measured, as many as a search reranks by default."""
_WEIGHTS = (0.0, 2.0, 5.0, 7.0, 10.0, 14.0, 20.0, 30.0, 50.0, 100.0, 200.0, 500.0)
"""Similarity weights that are tried on the hold-out."""


def require_unseen(card: ModelCard | None, to_train: TrainingData, to_choose: TrainingData, *, share: float) -> None:
    """Refuse to begin from, or learn from, a model that was trained on what is held out now; raises ConfigError.

    Its figures would be too good. A smaller hold-out is a part of a larger one, so a model that kept more is fine.
    """
    if card is None or card.data_digest != to_train.digest or not to_choose.queries:
        return
    settings, parts = card.training.get("settings", {}), card.training.get("parts", {})
    kept = float(settings.get("holdout_share", 0.0))
    if parts.get("trained_on") == to_train.part_digest:
        return
    if parts.get("cut") == f"hold-out of {kept:g}" and to_train.cut == f"hold-out of {share:g}" and share <= kept:
        return
    raise ConfigError(
        f"hold-out, with {card.name} {card.short_digest} in the run",
        got=f"{to_train.cut}, where that model kept {parts.get('cut') or 'nothing'}: it may have seen what is held out",
        wanted="requests that none of the models has seen",
        fix=f"Run it again with --holdout-share {kept:g}, or train that model with this cut.",
    )


def known_ndcg(
    card: ModelCard | None, served: ModelCard, to_choose: TrainingData, precision: Precision
) -> float | None:
    """What the end of a model's own run measured, if on this hold-out, in this precision and at `served`'s limits.

    A run that goes on from that model need not measure it again: on a CPU that takes minutes.
    """
    if card is None or card.training.get("parts", {}).get("chosen_on") != to_choose.part_digest:
        return None
    read = (card.max_tokens, card.max_query_tokens, card.training.get("precision"))
    if read != (served.max_tokens, served.max_query_tokens, precision):
        return None
    figure: float | None = card.training.get("holdout_ndcg_at_10", {}).get("after")
    return figure


@dataclass(frozen=True, slots=True)
class RerankerFigures:
    """NDCG@10 of a reranker's hold-out; all None without one."""

    embedder_only: float | None
    logit_only: float | None
    reranked: float | None
    """With the weight that does best."""
    weight: float

    def named(self) -> dict[str, float | None]:
        """As the card has them."""
        return {"embedder_only": self.embedder_only, "logit_only": self.logit_only, "reranked": self.reranked}


class RerankerHoldout:
    """The first stage's candidates for held-out requests, ranked once and measured with every state of a reranker."""

    def __init__(self, first: Run, data: TrainingData, trained_weight: float) -> None:
        self._first = first
        self._data = data
        self._trained_weight = trained_weight

    @classmethod
    def of(cls, first: FirstStage, data: TrainingData, trained_weight: float) -> RerankerHoldout:
        """Rank the held-out requests with the first stage."""
        ranking = first.rank(data.queries, data.skills, depth=_RANKED) if data.queries else {}
        return cls(ranking, data, trained_weight)

    def measure(self, reranker: Reranker) -> RerankerFigures:
        """Both stages, with the similarity weight that does best: the one trained with, unless another is better."""
        if not self._first:
            return RerankerFigures(None, None, None, self._trained_weight)
        logits = reranker.rerank(self._first, self._data.queries, self._data.skills, depth=_DEPTH)
        weights = sorted({self._trained_weight, *_WEIGHTS}, key=lambda weight: abs(weight - self._trained_weight))
        found = {weight: ndcg(self._fused(logits, weight), self._data) for weight in weights}
        best = max(found, key=lambda weight: found[weight])
        return RerankerFigures(ndcg(self._first, self._data), found[0.0], found[best], best)

    def _fused(self, logits: Run, weight: float) -> Run:
        return {query: self._scores(query, found, weight) for query, found in logits.items()}

    def _scores(self, query: str, logits: Mapping[str, float], weight: float) -> dict[str, float]:
        near = [self._first[query][skill] for skill in logits]
        scores = fuse(np.array(list(logits.values()), np.float32), np.array(near, np.float32), weight)
        return dict(zip(logits, scores.tolist(), strict=True))
