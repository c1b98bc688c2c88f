"""BM25 over the full skill text: the baseline that needs no training, and a retriever to mine with.

As SkillRet measures it: bm25s with its defaults (Lucene's variant, k1 1.5, b 0.75) and English stop words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import bm25s
import numpy as np

from skillserve.console import progress
from skillserve.framing import mend
from skillserve.records import Query, Run, Skill
from skillserve.settings import Settings
from skillserve.text import skill_text

__all__ = ["BM25", "open_bm25"]

_STOP_WORDS = "english"


@dataclass(frozen=True, slots=True)
class BM25:
    """A `skillserve.systems.System` without weights; it indexes the skills anew at every call."""

    name: str = "bm25"
    digests: Mapping[str, str] = field(default_factory=dict)

    def rank(self, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        """The best `depth` skills; equal scores by id, descending. Skills without a word of the query score 0."""
        index = bm25s.BM25()
        index.index(_words([skill_text(skill) for skill in skills]), show_progress=False)
        ids = [skill.id for skill in skills]
        # Best first is by score, then by id, descending both: the place of an id in the alphabet breaks ties.
        alphabet_N = np.argsort(np.argsort(np.array(ids, dtype=object)))
        run: dict[str, Mapping[str, float]] = {}
        with progress("bm25", len(queries)) as bar:
            for query, words in zip(queries, _words([query.text for query in queries]), strict=True):
                scores_N = index.get_scores(words) if words else np.zeros(len(skills), np.float32)
                best = np.lexsort((alphabet_N, scores_N))[::-1][:depth]
                run[query.id] = {ids[place]: float(scores_N[place]) for place in best.tolist()}
                bar.advance()
        return run


def open_bm25(_spec: str, _settings: Settings) -> BM25:
    """The `skillserve.systems.Opener` of `bm25`, which has nothing to set."""
    return BM25()


def _words(texts: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = bm25s.tokenize(
        [mend(text) for text in texts], stopwords=_STOP_WORDS, return_ids=False, show_progress=False
    )
    return found
