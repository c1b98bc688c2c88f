"""A catalogue ready to be searched: index, skills and tokenizers, whether from a bundle or not yet published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.fusion import fuse
from skillserve.tensors import Ids
from skillserve_client.index import FlatIndex
from skillserve_client.table import SkillTable
from skillserve_client.wire import Floats

__all__ = ["Corpus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Row r of the index is the skill at row r of the table."""

    index: FlatIndex
    skills: SkillTable
    embedder: EmbedderTokens
    reranker: RerankerTokens | None

    def pairs(self, query: Ids, rows: Iterable[int]) -> list[Ids]:
        """The reranker's sequences for a request (its bare ids) and the skills at these rows."""
        reranker = self._require_reranker()
        return [reranker.pair(query, self.skills.rerank_ids(row)) for row in rows]

    def final_scores(self, logits: Floats, similarities: Floats) -> Floats:
        """What reranked candidates are ordered by: logits and similarities, as the reranker's card weighs them."""
        return fuse(logits, similarities, self._require_reranker().card.similarity_weight)

    def _require_reranker(self) -> RerankerTokens:
        if self.reranker is None:
            raise ValueError("this corpus has no reranker")
        return self.reranker
