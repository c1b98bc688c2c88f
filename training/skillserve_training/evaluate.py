"""Exact retrieval in process, for choosing models: rankings of a hold-out, and their NDCG@10.

The served system is measured through its server; these figures say whether a run was worth exporting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from skillserve.card import ModelCard
from skillserve.console import progress
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.metrics import evaluate, ranked
from skillserve.records import Query, Run, Skill
from skillserve.tensors import Ids
from skillserve_training.dataset import TrainingData
from skillserve_training.families import family_of
from skillserve_training.forward import embed_all, score_all
from skillserve_training.precision import Precision

__all__ = ["Embedder", "Reranker", "ndcg"]

_DEPTH = 100
"""Skills kept per request; metrics at 10 do not see the rest."""
_ROWS = 1024
"""Requests compared with all skills at once: bounds the memory of the similarities."""
_PAIRS = 4096
"""Pairs framed at once."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """A bi-encoder with all that its texts need."""

    model: PreTrainedModel
    card: ModelCard
    tokens: EmbedderTokens
    precision: Precision

    def embed(self, queries: Sequence[Query], skills: Sequence[Skill]) -> tuple[Tensor, Tensor]:
        """Unit rows of requests `[Q, D]` and of skills `[S, D]`, float32, in the given order."""
        return self._rows([cut.ids for cut in self.tokens.queries([query.text for query in queries])], skills)

    def embed_in_pieces(
        self, requests: Sequence[Sequence[str]], skills: Sequence[Skill]
    ) -> tuple[list[Tensor], Tensor]:
        """As `embed`, but of requests with their parts behind them, each `[1 + P, D]`."""
        read = self.tokens.queries_in_pieces(requests)
        rows, skill_rows = self._rows([cut.ids for cuts in read for cut in cuts], skills)
        return list(torch.split(rows, [len(cuts) for cuts in read])), skill_rows

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

    def _rows(self, requests: Sequence[Ids], skills: Sequence[Skill]) -> tuple[Tensor, Tensor]:
        documents = self.tokens.skills(skills)
        with progress("embed", len(requests) + len(documents)) as bar:
            rows = embed_all(self.model, requests, self.card, self.precision, bar)
            return rows, embed_all(self.model, documents, self.card, self.precision, bar)


@dataclass(frozen=True, slots=True)
class Reranker:
    """A cross-encoder with all that its texts need."""

    model: PreTrainedModel
    tokens: RerankerTokens
    score_tokens: tuple[int, ...]
    precision: Precision

    def rerank(self, run: Run, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        """The first `depth` of each ranking in the order of the logits; the rest is left out."""
        candidates = {query.id: ranked(run[query.id])[:depth] for query in queries}
        wanted = {skill for top in candidates.values() for skill in top}
        read = [skill for skill in skills if skill.id in wanted]
        sides = dict(zip((skill.id for skill in read), self.tokens.skills(read), strict=True))
        cuts = self.tokens.queries([query.text for query in queries])
        texts = {query.id: cut.ids for query, cut in zip(queries, cuts, strict=True)}
        # Framed in parts, which bounds the memory; what shares a pass within a part, the model's family decides.
        pairs = [(query, skill) for query, top in candidates.items() for skill in top]
        reranked: dict[str, dict[str, float]] = {query.id: {} for query in queries}
        with family_of(self.model).remembering(self.model), progress("rerank", len(pairs)) as bar:
            for start in range(0, len(pairs), _PAIRS):
                part = pairs[start : start + _PAIRS]
                framed = [self.tokens.pair(texts[query], sides[skill]) for query, skill in part]
                logits = score_all(self.model, framed, self.score_tokens, self.precision, bar).tolist()
                for (query, skill), logit in zip(part, logits, strict=True):
                    reranked[query][skill] = logit
        return reranked


def ndcg(run: Run, data: TrainingData) -> float:
    """NDCG@10 of the rankings of `data`'s requests, rounded to 4 decimals."""
    return round(evaluate(run, data.qrels, k=10)["ndcg@10"], 4)
