"""Guards against false negatives: candidates that nobody judged, but that probably fit the request.

Each guard looks at one request's candidates and names those to leave out. A skill is named
by its position.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from skillserve.records import Skill
from skillserve.text import skill_text
from skillserve_training.nearness import Likeness

__all__ = ["Guard", "NameGuard", "NearGoldGuard", "OverlapGuard", "ShareGuard"]

_WORD = re.compile(r"\w+")
_RUN = 5
"""Words of a shingle (Broder, 1997): five in a row are seldom the same by chance."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that its powers lose no bits modulo 2^64."""

Shingles = NDArray[np.uint64]


class Guard(Protocol):
    """One reason to leave candidates out."""

    @property
    def name(self) -> str:
        """What the guard is called in the counts, and the kind of the rows that it leaves out."""
        ...

    def suspects(self, request: int, golds: Sequence[int], candidates: Sequence[int]) -> set[int]:
        """The candidates that probably fit the request, as its golds do."""
        ...


class NameGuard:
    """Skills that are called as a gold is, but for case, spaces and punctuation: forks, copies and versions."""

    name = "name"

    def __init__(self, skills: Sequence[Skill]) -> None:
        self._names = ["".join(_WORD.findall(skill.name.casefold())).replace("_", "") for skill in skills]

    def suspects(self, _request: int, golds: Sequence[int], candidates: Sequence[int]) -> set[int]:
        """Candidates with the name of a gold."""
        known = {self._names[gold] for gold in golds} - {""}
        return {candidate for candidate in candidates if self._names[candidate] in known}


class OverlapGuard:
    """Near duplicates: Jaccard similarity of the sets of shingles of two skill texts, computed exactly."""

    name = "overlap"

    def __init__(self, skills: Sequence[Skill], most: float) -> None:
        self._skills = skills
        self._most = most
        self._known: dict[int, Shingles] = {}
        self._numbers: dict[str, int] = {}

    def suspects(self, _request: int, golds: Sequence[int], candidates: Sequence[int]) -> set[int]:
        """Candidates that share more than allowed with a gold."""
        return {
            candidate for candidate in candidates if any(self._overlap(candidate, gold) > self._most for gold in golds)
        }

    def _overlap(self, one: int, other: int) -> float:
        shorter, longer = sorted((self._shingles(one), self._shingles(other)), key=len)
        if len(shorter) <= self._most * len(longer):  # the sizes alone leave no room for more
            return 0.0
        places = np.minimum(np.searchsorted(longer, shorter), len(longer) - 1)
        shared = int(np.count_nonzero(longer[places] == shorter))
        return shared / (len(shorter) + len(longer) - shared)

    def _shingles(self, skill: int) -> Shingles:
        """Hashes of all runs of five words, sorted, each once; a shorter text is one run."""
        if skill not in self._known:
            words = _WORD.findall(skill_text(self._skills[skill]).casefold())
            numbers = np.array([self._numbers.setdefault(word, len(self._numbers) + 1) for word in words], np.uint64)
            length = max(1, min(_RUN, len(numbers)))
            runs = np.lib.stride_tricks.sliding_window_view(numbers, length) if words else numbers.reshape(0, 1)
            self._known[skill] = np.unique((runs * _BASE ** np.arange(1, length + 1, dtype=np.uint64)).sum(1))
        return self._known[skill]


@dataclass(frozen=True, slots=True)
class ShareGuard:
    """Skills that an embedder finds about as near to the request as the gold that is nearest to it.

    Relative to the gold, since cosines of requests differ (NV-Retriever, arXiv 2407.15831, its TopK-PercPos).
    """

    likeness: Likeness
    most: float
    name: str = "share"

    def suspects(self, request: int, golds: Sequence[int], candidates: Sequence[int]) -> set[int]:
        """Candidates above that share of the best gold's similarity."""
        if not candidates:
            return set()
        limit = self.most * float(self.likeness.to_request(request, golds).max())
        nearness = self.likeness.to_request(request, candidates).tolist()
        return {candidate for candidate, near in zip(candidates, nearness, strict=True) if near > limit}


@dataclass(frozen=True, slots=True)
class NearGoldGuard:
    """Skills that an embedder can hardly tell from a gold."""

    likeness: Likeness
    most: float
    name: str = "near gold"

    def suspects(self, _request: int, golds: Sequence[int], candidates: Sequence[int]) -> set[int]:
        """Candidates nearer to a gold than allowed."""
        if not candidates:
            return set()
        nearest = (self.likeness.skills[list(candidates)] @ self.likeness.skills[list(golds)].T).max(1).tolist()
        return {candidate for candidate, near in zip(candidates, nearest, strict=True) if near > self.most}
