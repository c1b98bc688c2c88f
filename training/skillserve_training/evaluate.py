"""Exact retrieval in process, for choosing models: rankings of a hold-out, and their NDCG@10.

The served system is measured through its server; these figures say whether a run was worth exporting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from skillserve.card import ModelCard
from skillserve.console import progress
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.metrics import evaluate, ranked
from skillserve.records import Query, Run, Skill
from skillserve_training.dataset import TrainingData
from skillserve_training.forward import embed_all, score_all
from skillserve_training.precision import Precision

__all__ = ["Embedder", "Reranker", "ndcg"]

_DEPTH = 100
"""Skills kept per request; metrics at 10 do not see the rest."""
_ROWS = 1024
"""Requests compared with all skills at once: bounds the memory of the similarities."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """A bi-encoder with all that its texts need."""

    model: PreTrainedModel
    card: ModelCard
    tokens: EmbedderTokens
    precision: Precision

    def embed(self, queries: Sequence[Query], skills: Sequence[Skill]) -> tuple[Tensor, Tensor]:
        """Unit rows of requests `[Q, D]` and of skills `[S, D]`, float32, in the given order."""
        texts = [cut.ids for cut in self.tokens.queries([query.text for query in queries])]
        documents = self.tokens.skills(skills)
        with progress("embed", len(texts) + len(documents)) as bar:
            query_rows = embed_all(self.model, texts, self.card, self.precision, bar)
            return query_rows, embed_all(self.model, documents, self.card, self.precision, bar)

    def rank(self, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int = _DEPTH) -> Run:
        """The nearest skills of each request by inner product, exactly."""
        query_rows, skill_rows = self.embed(queries, skills)
        run: dict[str, Mapping[str, float]] = {}
        for start in range(0, len(queries), _ROWS):
            nearest = (query_rows[start : start + _ROWS] @ skill_rows.T).topk(min(depth, len(skills)), dim=1)
            rows = zip(queries[start : start + _ROWS], nearest.values, nearest.indices, strict=True)
            for query, values, places in rows:
                run[query.id] = {
                    skills[place].id: value for place, value in zip(places.tolist(), values.tolist(), strict=True)
                }
        return run


@dataclass(frozen=True, slots=True)
class Reranker:
    """A cross-encoder with all that its texts need."""

    model: PreTrainedModel
    tokens: RerankerTokens
    score_tokens: tuple[int, ...]
    precision: Precision

    def rerank(self, run: Run, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        """The first `depth` of each ranking in the order of the logits; the rest is left out."""
        sides = dict(zip((skill.id for skill in skills), self.tokens.skills(skills), strict=True))
        reranked: dict[str, Mapping[str, float]] = {}
        with progress("rerank", sum(min(depth, len(run[query.id])) for query in queries)) as bar:
            for query in queries:
                candidates = ranked(run[query.id])[:depth]
                text = self.tokens.query(query.text).ids
                pairs = [self.tokens.pair(text, sides[skill]) for skill in candidates]
                logits = score_all(self.model, pairs, self.score_tokens, self.precision, bar).tolist()
                reranked[query.id] = dict(zip(candidates, logits, strict=True))
        return reranked


def ndcg(run: Run, data: TrainingData) -> float:
    """NDCG@10 of the rankings of `data`'s requests, rounded to 4 decimals."""
    return round(evaluate(run, data.qrels, k=10)["ndcg@10"], 4)
