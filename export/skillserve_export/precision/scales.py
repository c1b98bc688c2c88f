"""Scales of W8A8, in numpy: rounding of weights and tokens, and how far channels are evened out before.

Shape legend: T tokens, K input features, N output features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["LEVELS", "TINY", "WEIGHT_BITS", "quantised_weights", "rounded_rows", "smoothing"]

Floats = npt.NDArray[np.float32]

WEIGHT_BITS = 8
"""With fewer only tests work: to see a gate fail."""
LEVELS = 127
"""Activations are whole numbers in [-LEVELS, LEVELS], stored 128 higher."""
TINY = np.float32(1e-30)
"""The least scale: a row of zeros must not become 0 / 0."""

_MOST_PAIR = 127.5
"""Processors without VNNI add the products of two neighbouring features into 16 bits, which saturates in silence above
32,767. An activation is stored as 255 at most, so two weights of the same sign may sum to 128, rounded."""

_SHARES = (0.5, 0.6, 0.7, 0.8)
"""How much of the unevenness of channels goes into the weights; SmoothQuant (arXiv:2211.10438) calls it alpha."""
_WORTH = 0.8
"""Smoothing costs a pass over the activations, so it has to leave at most this share of the squared error."""
_MOST_ROWS = 256
"""Tokens on which shares are compared."""


def quantised_weights(weight_KN: Floats, bits: int = WEIGHT_BITS) -> tuple[npt.NDArray[np.int8], Floats]:
    """Weights `[K, N]` as whole numbers, and the scale of each output channel `[N]`; off by half a scale at most.

    A scale is as small as the largest weight allows, and the largest sum of two neighbours of one sign.
    """
    size = np.abs(weight_KN)
    scale_N = size.max(axis=0) / (2 ** (bits - 1) - 1)
    if bits == WEIGHT_BITS and len(size) > 1:
        alike = np.sign(weight_KN[1:]) == np.sign(weight_KN[:-1])
        scale_N = np.maximum(scale_N, ((size[1:] + size[:-1]) * alike).max(axis=0) / _MOST_PAIR)
    scale_N = np.maximum(scale_N, TINY).astype(np.float32)
    return np.rint(weight_KN / scale_N).astype(np.int8), scale_N


def rounded_rows(x_TK: Floats) -> Floats:
    """Activations as the graph rounds them: each token by its own scale."""
    scale_T1 = np.maximum(np.abs(x_TK).max(axis=1, keepdims=True), TINY) / np.float32(LEVELS)
    rounded: Floats = np.rint(x_TK / scale_T1) * scale_T1
    return rounded


def smoothing(x_TK: Floats, weights: Sequence[Floats]) -> Floats | None:
    """Factors `[K]` by which activations are multiplied and weights divided, or None where that does not help.

    A few channels of a transformer's activations are many times larger than the others, and one scale a token rounds
    everything to their measure. `weights` are those of all layers that read x, `[K, N]` each; what is compared is the
    squared error of their results on x.
    """
    peak_K = np.maximum(np.abs(x_TK).max(axis=0), TINY)
    weight_K = np.maximum(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0), TINY)
    sample_TK = x_TK[:: -(-len(x_TK) // _MOST_ROWS)]
    exact = [sample_TK @ weight for weight in weights]

    def error(factor_K: Floats) -> float:
        rows_TK = rounded_rows(sample_TK * factor_K)
        total = 0.0
        for weight, wanted in zip(weights, exact, strict=True):
            integers_KN, scale_N = quantised_weights(weight / factor_K[:, None])
            total += float(np.square(rows_TK @ (integers_KN * scale_N) - wanted).sum())
        return total

    candidates = []
    for share in _SHARES:
        factor_K = weight_K ** (1 - share) / peak_K**share
        candidates.append((factor_K / np.exp(np.log(factor_K).mean())).astype(np.float32))
    errors = [error(factor_K) for factor_K in candidates]
    best = int(np.argmin(errors))
    return candidates[best] if errors[best] <= _WORTH * error(np.ones_like(peak_K)) else None
