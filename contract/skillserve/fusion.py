"""Scores that are sums, each added up in one place only: a second one would rank differently from what was measured.

    scored text       = similarity + lexical weight · lexical / its maximum for the request
    first-stage score = similarity of the request + part weight · its best part as a scored text    `blend`
                        or, where parts weigh nothing, the request as a scored text
    final score       = logit + similarity weight · first-stage score                               `fuse`

Training chooses the similarity weight on held-out data and writes it into the reranker's card; the first stage's
weights stand in the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from skillserve.parts import request_parts

__all__ = ["PLAIN", "FirstStageWeights", "blend", "fuse", "scored_texts"]

Floats = npt.NDArray[np.float32]


class _Weighted(Protocol):
    """Settings, or a record on disk."""

    @property
    def lexical_weight(self) -> float: ...

    @property
    def part_weight(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstStageWeights:
    """What the first stage adds to the similarity of a request."""

    lexical: float = 0.0
    """Of lexical scores."""
    parts: float = 0.0
    """Of the best part of the request."""

    @classmethod
    def of(cls, weighted: _Weighted) -> Self:
        """The weights that settings or a record name."""
        return cls(lexical=weighted.lexical_weight, parts=weighted.part_weight)

    def pieces(self, request: str) -> tuple[str, ...]:
        """What is embedded of a request: the whole and, where they weigh something, its parts behind it."""
        return (request, *(request_parts(request) if self.parts else ()))

    def __str__(self) -> str:
        return f"lexical {self.lexical:g}, parts {self.parts:g}"


PLAIN = FirstStageWeights()
"""First-stage scores are similarities."""


def scored_texts(pieces: Sequence[str]) -> Sequence[str]:
    """What lexical scores are of: a request's parts, or the whole where it has none; `pieces` are its."""
    return pieces[1:] or pieces


def blend(similarities: Floats, lexical: Floats | None, weights: FirstStageWeights) -> Floats:
    """First-stage scores `[N]` float32 of one request, from similarities `[1 + P, N]` and lexical scores `[M, N]`.

    The first row of similarities is the whole request's, the others are its parts'. The lexical scores are those of
    `scored_texts`: M = P, or 1. A request without parts counts as its own part, so that scores of short and
    long requests compare. N is the whole catalogue, since a share of it would have another maximum. A weight of 0, and
    lexical scores that are all 0, leave the rest as it is, bit for bit.

    Raises ValueError if the two do not pair up, or if there are no lexical scores for their weight.
    """
    if lexical is None and weights.lexical:
        raise ValueError(f"no lexical scores for the weights {weights}")
    scored = similarities[1:] if weights.parts and len(similarities) > 1 else similarities[:1]
    if lexical is not None and scored.shape != lexical.shape:
        raise ValueError(f"similarities {similarities.shape} and lexical scores {lexical.shape} do not pair up")
    if lexical is not None and weights.lexical and (most := lexical.max(initial=0)) > 0:
        scored = scored + np.float32(weights.lexical) * (lexical / most)
    scores: Floats = scored[0]
    if weights.parts:
        scores = similarities[0] + np.float32(weights.parts) * scored.max(axis=0)
    return scores.astype(np.float32, copy=False)


def fuse(logits: Floats, similarities: Floats, similarity_weight: float) -> Floats:
    """Final scores `[N]` float32: logit + similarity_weight · similarity; with weight 0 the logits, bit for bit.

    The similarity is the first-stage score, which is more than a similarity where that stage adds words or parts.

    Raises ValueError if the two are not of one shape, since numpy would spread the shorter one in silence.
    """
    if logits.shape != similarities.shape:
        raise ValueError(f"logits {logits.shape} and similarities {similarities.shape} do not pair up")
    if similarity_weight == 0:
        return logits
    return (logits + np.float32(similarity_weight) * similarities).astype(np.float32)
