"""The values that travel between rooms: skills and requests going in, answers coming out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Answer", "Hit", "Pair", "Qrels", "Query", "Run", "Skill"]

Qrels = Mapping[str, Mapping[str, int]]
"""Relevance judgements: query id → skill id → relevance (TREC's qrels)."""

Run = Mapping[str, Mapping[str, float]]
"""Rankings: query id → skill id → score, higher is better (TREC's run)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """One agent skill: what a SKILL.md says, and where it is filed."""

    id: str
    """Unique in its catalogue. Names are not: different authors choose the same one."""
    name: str
    description: str = ""
    body: str = ""
    namespace: str = ""
    """Author or repository."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Whatever else the source said (licence, category, …), kept for filters and display."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One request with the skills that fit it; `skill_ids` is empty when none does."""

    id: str
    text: str
    skill_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A request and a skill of the catalogue, to be scored."""

    id: str | None
    """As the source names it, if it does."""
    text: str
    skill_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One skill of an answer."""

    rank: int
    """1 is best."""
    skill_id: str
    name: str
    description: str
    score: float
    """The final score if this hit was reranked (the reranker's logit, plus the weighted similarity where its card
    says so), else its first-stage score."""
    similarity: float
    """Of its embedding with the request's; the first-stage score is more than that in a hybrid bundle."""
    """Inner product of the query's and the skill's embedding, in [-1, 1] for unit vectors."""
    reranked: bool = False
    """Scores compare only among hits of one kind; in an answer the reranked ones stand first."""
    probability: float | None = None
    """Probability that this skill fits; None without a calibration for this kind of hit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The result of one search, complete enough to be reproduced."""

    status: Literal["ok", "degraded", "abstained"]
    """`degraded`: the deadline or a failing reranker left the order of the first stage. `abstained`: probably no
    skill fits, whichever stage found that out; there are no hits, and the request belongs to whatever handles
    requests without a skill."""
    hits: tuple[Hit, ...]
    reranked: bool
    notes: tuple[str, ...]
    """What the reader should know: truncation, why nothing was reranked, why the answer is degraded or abstained."""
    bundle: str
    """Version of the bundle that answered."""
    digests: Mapping[str, str]
    """Role → digest of the model that took part."""
    timings_ms: Mapping[str, float]
    """Stage → milliseconds: `tokenise`, `embed`, `candidates`, `rerank`, `total`."""
    probability: float | None = None
    """Probability that some skill of the catalogue fits; None without a calibration for this search."""
    near_misses: tuple[Hit, ...] = ()
    """What the hits of an abstained answer would have been: to look at, not to use."""

    def to_dict(self) -> dict[str, Any]:
        """The answer as `--json` prints it."""
        return asdict(self)
