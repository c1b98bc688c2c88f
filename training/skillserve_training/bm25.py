"""BM25 over the full skill text: the baseline that needs no training, and a retriever to mine with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from skillserve.console import progress
from skillserve.lexical import LexicalIndex, require_bm25s
from skillserve.records import Query, Run, Skill
from skillserve.settings import Settings
from skillserve.text import skill_text

__all__ = ["BM25", "open_bm25"]


@dataclass(frozen=True, slots=True)
class BM25:
    """A `skillserve.systems.System` without weights; it indexes the skills anew at every call."""

    name: str = "bm25"
    digests: Mapping[str, str] = field(default_factory=dict)

    def rank(self, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        """The best `depth` skills; equal scores by id, descending. Skills without a word of the query score 0."""
        index = LexicalIndex.build([skill_text(skill) for skill in skills])
        ids = [skill.id for skill in skills]
        # Best first is by score, then by id, descending both: the place of an id in the alphabet breaks ties.
        alphabet_N = np.argsort(np.argsort(np.array(ids, dtype=object)))
        run: dict[str, Mapping[str, float]] = {}
        with progress("bm25", len(queries)) as bar:
            for query in queries:
                (scores_N,) = index.scores([query.text])
                best = np.lexsort((alphabet_N, scores_N))[::-1][:depth]
                run[query.id] = {ids[place]: float(scores_N[place]) for place in best.tolist()}
                bar.advance()
        return run


def open_bm25(_spec: str, _settings: Settings) -> BM25:
    """The `skillserve.systems.Opener` of `bm25`, which has nothing to set; MissingExtraError without bm25s."""
    require_bm25s(extra="training")
    return BM25()
