"""Scores that are sums, each added up in one place only: a second one would rank differently from what was measured.

    first-stage score = similarity + lexical_weight · lexical / its maximum for the request    `blend`
    final score       = logit + similarity_weight · first-stage score                          `fuse`

Training chooses the similarity weight on held-out data and writes it into the reranker's card; the lexical weight
stands in the bundle.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["blend", "fuse"]

Floats = npt.NDArray[np.float32]


def blend(similarities: Floats, lexical: Floats, lexical_weight: float) -> Floats:
    """First-stage scores `[N]` float32 of one request: similarity + lexical_weight · lexical / max(lexical).

    N is the whole catalogue, since the maximum of a part would be another one. With weight 0, or where no skill has a
    word of the request, they are the similarities, bit for bit. Raises ValueError if the two are not of one shape.
    """
    if lexical.shape != similarities.shape:
        raise ValueError(f"similarities {similarities.shape} and lexical scores {lexical.shape} do not pair up")
    most = lexical.max(initial=0)
    if lexical_weight == 0 or most == 0:
        return similarities
    scores: Floats = similarities + np.float32(lexical_weight) * (lexical / most)
    return scores.astype(np.float32)


def fuse(logits: Floats, similarities: Floats, similarity_weight: float) -> Floats:
    """Final scores `[N]` float32: logit + similarity_weight · similarity; with weight 0 the logits, bit for bit.

    The similarity is the first-stage score, which is more than a similarity where that stage is hybrid.

    Raises ValueError if the two are not of one shape, since numpy would spread the shorter one in silence.
    """
    if logits.shape != similarities.shape:
        raise ValueError(f"logits {logits.shape} and similarities {similarities.shape} do not pair up")
    if similarity_weight == 0:
        return logits
    return (logits + np.float32(similarity_weight) * similarities).astype(np.float32)
