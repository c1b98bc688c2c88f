"""A catalogue ready to be searched: index, skills and tokenizers, whether from a bundle or not yet published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from skillserve.card import ScoreKind
from skillserve.errors import ConfigError
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.fusion import PLAIN, FirstStageWeights, blend, fuse, scored_texts
from skillserve.lexical import LexicalIndex
from skillserve.settings import SearchSettings
from skillserve.tensors import Ids, Role
from skillserve_client.table import SkillTable
from skillserve_client.token_embeddings import TokenEmbeddings
from skillserve_client.vectors import Rows, VectorIndex
from skillserve_client.wire import Floats

__all__ = ["Candidates", "Corpus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What the first stage found for one request: its best K skills, and the K nearest, others where it has weights."""

    request: Floats
    """`[D]`, the embedding of the whole request."""
    rows: Rows
    """`[K]`, by first-stage score; equal ones by similarity, then by row."""
    scores: Floats
    """`[K]`, first-stage scores."""
    similarities: Floats
    """`[K]`, of the same skills with the whole request."""
    nearest_rows: Rows
    """`[K]`, by similarity; equal ones by row."""
    nearest: Floats
    """`[K]`, similarities of the nearest skills."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Row r of the index, and of the lexical index, is the skill at row r of the table."""

    index: VectorIndex
    skills: SkillTable
    embedder: EmbedderTokens
    reranker: RerankerTokens | None
    tokens: TokenEmbeddings | None = None
    """Where they are kept, skills are compared by them."""
    lexical: LexicalIndex | None = None
    weights: FirstStageWeights = PLAIN
    """Those of the first stage, unless a search says otherwise."""

    @property
    def second_stage(self) -> Role:
        """The model that candidates are reranked by, if there is one."""
        return "reranker" if self.tokens is None else "token_embedder"

    def score_kind(self, role: Role) -> ScoreKind:
        """How the model of a role scores sequences."""
        tokens = self.reranker if role == "reranker" and self.reranker else self.embedder
        return tokens.card.score_kind

    def chosen(self, settings: SearchSettings) -> FirstStageWeights:
        """The first stage's weights in a search.

        Raises ConfigError for a lexical one without a lexical index, and for a namespace without skills.
        """
        wanted = settings.lexical_weight
        if wanted and self.lexical is None:
            raise ConfigError(
                "setting lexical_weight",
                got=f"{wanted:g} for a bundle without a lexical index",
                wanted="0, or a hybrid bundle",
                fix=f"Build one: skillserve index CATALOGUE --lexical-weight {wanted:g}",
            )
        if settings.namespace is not None and not len(self.skills.rows_of(settings.namespace)):
            raise ConfigError(
                "setting namespace",
                got=f"{settings.namespace!r}, in which this bundle has no skill",
                wanted="a namespace of the catalogue",
                fix="Correct it, or leave it out to search all skills.",
            )
        return FirstStageWeights(
            lexical=self.weights.lexical if wanted is None else wanted,
            parts=self.weights.parts if settings.part_weight is None else settings.part_weight,
        )

    def candidates(
        self,
        vectors: Sequence[Floats],
        requests: Sequence[Sequence[str]],
        k: int,
        weights: FirstStageWeights,
        *,
        namespace: str | None = None,
    ) -> list[Candidates]:
        """The first stage for Q requests, in the weights' pieces and embedded: K = min(k, N) candidates of each.

        With a namespace the N skills are those of it; their scores are what they are in the whole catalogue.

        The vectors of a request are `[1 + P, D]`, one for each piece. With a weight every skill of the catalogue is
        scored, so that words or a part alone can make a skill a candidate.
        """
        if weights == PLAIN:
            whole = np.stack([rows[0] for rows in vectors])
            return [
                Candidates(request=row, rows=rows, scores=near, similarities=near, nearest_rows=rows, nearest=near)
                for row, near, rows in zip(whole, *self.index.search(whole, k, namespace=namespace), strict=True)
            ]
        found = []
        among = np.arange(len(self.skills)) if namespace is None else self.skills.rows_of(namespace)
        for embedded, pieces in zip(vectors, requests, strict=True):
            near, scores = self.first_stage(embedded, pieces, weights)
            nearest = among[np.argsort(-near[among], kind="stable")[:k]]
            # By similarity, too: a weighted sum may round two of them to one score.
            rows = among[np.lexsort((-near[among], -scores[among]))[:k]]
            found.append(
                Candidates(
                    request=embedded[0],
                    rows=rows,
                    scores=scores[rows],
                    similarities=near[rows],
                    nearest_rows=nearest,
                    nearest=near[nearest],
                )
            )
        return found

    def first_stage(self, embedded: Floats, pieces: Sequence[str], weights: FirstStageWeights) -> tuple[Floats, Floats]:
        """Similarity and first-stage score of every skill, `[N]` each, for a request in pieces and embedded."""
        similarities = self.index.similarities(embedded)
        words = None
        if self.lexical and weights.lexical:
            words = self.lexical.scores(scored_texts(pieces))
        return similarities[0], blend(similarities, words, weights)

    def pairs(self, query: Ids, rows: Iterable[int]) -> list[Ids]:
        """The reranker's sequences for a request (its bare ids) and the skills at these rows."""
        reranker = self.require_reranker()
        return [reranker.pair(query, self.skills.rerank_ids(row)) for row in rows]

    def final_scores(self, logits: Floats, first_stage: Floats) -> Floats:
        """What reranked candidates are ordered by: logit and first-stage score, as the reranker's card weighs them."""
        return fuse(logits, first_stage, self.require_reranker().card.similarity_weight)

    def require_reranker(self) -> RerankerTokens:
        """What reads requests and skills for the second stage; ValueError without one."""
        if self.reranker is None:
            raise ValueError("this corpus has no reranker")
        return self.reranker
