"""How near skills are to requests: as an embedder has it, or as a first stage of more than an embedder scores them.

Legend: Q requests, S skills, D dimension of embeddings, R requests in a row; both are named by their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["FirstStageScores", "Likeness", "Nearness"]

Floats = NDArray[np.float32]


class Nearness(Protocol):
    """What orders skills for a request, and what a reranker's logit is added to."""

    def block(self, first: int, last: int) -> Floats:
        """`[R, S]`, of the requests from the first to before the last one; the caller's own, to write on."""
        ...

    def to_request(self, request: int, skills: Sequence[int]) -> Floats:
        """Of each of these skills to the request."""
        ...


@dataclass(frozen=True, slots=True)
class Likeness:
    """What an embedder makes of requests and skills."""

    requests: Floats
    """`[Q, D]`, rows unit-norm"""
    skills: Floats
    """`[S, D]`, rows unit-norm"""

    def block(self, first: int, last: int) -> Floats:
        """Cosines."""
        cosines: Floats = self.requests[first:last] @ self.skills.T
        return cosines

    def to_request(self, request: int, skills: Sequence[int]) -> Floats:
        """Cosine of each skill to the request."""
        cosines: Floats = self.skills[list(skills)] @ self.requests[request]
        return cosines


@dataclass(frozen=True, slots=True)
class FirstStageScores:
    """First-stage scores of all skills, kept: words are scored against the whole catalogue, or not at all."""

    scores: Floats
    """`[Q, S]`, 40 MB for 2,000 requests and 5,000 skills"""

    def block(self, first: int, last: int) -> Floats:
        """First-stage scores."""
        return self.scores[first:last].copy()

    def to_request(self, request: int, skills: Sequence[int]) -> Floats:
        """First-stage score of each skill for the request."""
        return self.scores[request, list(skills)]
