"""A catalogue ready to be searched: index, skills and tokenizers, whether from a bundle or not yet published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.tensors import Ids
from skillserve_client.index import FlatIndex
from skillserve_client.table import SkillTable

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
        if self.reranker is None:
            raise ValueError("this corpus has no reranker")
        return [self.reranker.pair(query, self.skills.rerank_ids(row)) for row in rows]
