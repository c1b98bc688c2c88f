"""One final score out of both stages: what a reranker says, and how near the embedder found the skill.

Training chooses the weight on held-out data with this function and writes it into the reranker's card; the client
orders hits by it. A second place that adds the two up would rank differently from what was measured.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["fuse"]

Floats = npt.NDArray[np.float32]


def fuse(logits: Floats, similarities: Floats, similarity_weight: float) -> Floats:
    """Final scores `[N]` float32: logit + similarity_weight · similarity; with weight 0 the logits, bit for bit.

    Raises ValueError if the two are not of one shape, since numpy would spread the shorter one in silence.
    """
    if logits.shape != similarities.shape:
        raise ValueError(f"logits {logits.shape} and similarities {similarities.shape} do not pair up")
    if similarity_weight == 0:
        return logits
    return (logits + np.float32(similarity_weight) * similarities).astype(np.float32)
