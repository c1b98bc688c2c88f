"""A catalogue ready to be searched: index, skills and tokenizers, whether from a bundle or not yet published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from skillserve.errors import ConfigError
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.fusion import blend, fuse
from skillserve.lexical import LexicalIndex
from skillserve.tensors import Ids
from skillserve_client.index import FlatIndex, Rows
from skillserve_client.table import SkillTable
from skillserve_client.wire import Floats

__all__ = ["Candidates", "Corpus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What the first stage found for one request: its best K skills, and the K nearest, which hybrid search parts."""

    rows: Rows
    """`[K]`, by first-stage score; equal ones by row."""
    scores: Floats
    """`[K]`, first-stage scores."""
    similarities: Floats
    """`[K]`, of the same skills."""
    nearest_rows: Rows
    """`[K]`, by similarity; equal ones by row."""
    nearest: Floats
    """`[K]`, similarities of the nearest skills."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Row r of the index, and of the lexical index, is the skill at row r of the table."""

    index: FlatIndex
    skills: SkillTable
    embedder: EmbedderTokens
    reranker: RerankerTokens | None
    lexical: LexicalIndex | None = None
    lexical_weight: float = 0.0
    """What the first stage weighs lexical scores with, unless a search says otherwise."""

    def weight(self, wanted: float | None) -> float:
        """The lexical weight of a search that wants this one; ConfigError for more than 0 without a lexical index."""
        if wanted and self.lexical is None:
            raise ConfigError(
                "setting lexical_weight",
                got=f"{wanted:g} for a bundle without a lexical index",
                wanted="0, or a hybrid bundle",
                fix=f"Build one: skillserve index CATALOGUE --lexical-weight {wanted:g}",
            )
        return self.lexical_weight if wanted is None else wanted

    def candidates(self, vectors: Floats, texts: Sequence[str], k: int, lexical_weight: float) -> list[Candidates]:
        """The first stage for Q requests, embedded `[Q, D]` and as texts: K = min(k, N) candidates of each.

        With a weight every skill of the catalogue is scored, so that words alone can make a skill a candidate.
        """
        if self.lexical is None or not lexical_weight:
            return [
                Candidates(rows=rows, scores=near, similarities=near, nearest_rows=rows, nearest=near)
                for near, rows in zip(*self.index.search(vectors, k), strict=True)
            ]
        found = []
        for vector, text in zip(vectors, texts, strict=True):
            near = self.index.similarities(vector)
            scores = blend(near, self.lexical.scores(text), lexical_weight)
            rows, nearest = (np.argsort(-order, kind="stable")[:k] for order in (scores, near))
            found.append(
                Candidates(
                    rows=rows,
                    scores=scores[rows],
                    similarities=near[rows],
                    nearest_rows=nearest,
                    nearest=near[nearest],
                )
            )
        return found

    def pairs(self, query: Ids, rows: Iterable[int]) -> list[Ids]:
        """The reranker's sequences for a request (its bare ids) and the skills at these rows."""
        reranker = self._require_reranker()
        return [reranker.pair(query, self.skills.rerank_ids(row)) for row in rows]

    def final_scores(self, logits: Floats, first_stage: Floats) -> Floats:
        """What reranked candidates are ordered by: logit and first-stage score, as the reranker's card weighs them."""
        return fuse(logits, first_stage, self._require_reranker().card.similarity_weight)

    def _require_reranker(self) -> RerankerTokens:
        if self.reranker is None:
            raise ValueError("this corpus has no reranker")
        return self.reranker
